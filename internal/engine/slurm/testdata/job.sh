#!/bin/sh
#SBATCH --job-name=raylink-program
#SBATCH --signal=B:TERM@120
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=1025M
#SBATCH --gres=gpu:2,tmp:10
#SBATCH --partition=gpu
#SBATCH --time=1:00:00
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH "--comment=a b"
#SBATCH hetjob
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=tmp:10
#SBATCH --partition=gpu
#SBATCH --time=1:00:00
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH "--comment=a b"

exec /shared/raylink run --on slurm ${1:+--slurm-submission "$1"} \
  --group trainers:machines=1,cpu=7.5,gpu=2,memory=1073741825,label.role=trainer \
  --group workers:machines=16,cpu=8 \
  '--checkpoint=save $RAYLINK_BRAIN' \
  -- '/shared/my program' --x 'it'\''s'
