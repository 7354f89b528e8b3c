"""What `launch.sh` needs beyond a shell: many nodes over ssh, their preflight, the batch script of Slurm."""
