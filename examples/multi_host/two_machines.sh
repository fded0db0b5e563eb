#!/usr/bin/env bash
# Trains one run on several machines, reached by ssh. All see this folder and the run directory:
#
#   examples/multi_host/two_machines.sh "alpha beta" --config=camvid --workdir=/shared/runs/camvid
#
# The first machine is process 0, which writes, and which the others reach on PORT. On Ctrl-C or
# SIGTERM all save and end; the same command goes on from there. Its exit status is that of the
# first process that fails.
set -uo pipefail

read -r -a machines <<<"$1"
shift
port=${PORT:-8476}
here=$(printf "%q" "$PWD")
number=$here/.jseg_process # of each on its machine, in files

processes=()
for i in "${!machines[@]}"; do
  command="cd $here && echo \$\$ >$number.$i && exec ${JSEG:-jseg} train $(printf "%q " "$@")"
  command+="--coordinator=${machines[0]}:$port --num-processes=${#machines[@]} --process-id=$i"
  ssh "${machines[$i]}" "$command" &
  processes+=($!)
done

# One is enough: the processes agree on the step after which they stop.
trap 'ssh "${machines[0]}" "kill -TERM \$(cat $number.0)"' INT TERM

status=0
for process in "${processes[@]}"; do
  wait "$process"
  ended=$?
  while [ "$ended" -gt 128 ] && kill -0 "$process" 2>/dev/null; do # a signal ended only `wait`
    wait "$process"
    ended=$?
  done
  [ "$status" -ne 0 ] || status=$ended
done
rm -f "$PWD"/.jseg_process.*
exit "$status"
