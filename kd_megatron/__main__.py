"""``python -m kd_megatron COMMAND``."""

import sys

from kd_megatron.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
