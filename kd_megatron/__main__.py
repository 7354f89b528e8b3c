"""``python -m kd_megatron COMMAND``."""

from kd_megatron.cli.main import program

if __name__ == "__main__":
    program()
