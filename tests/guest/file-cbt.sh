#!/bin/bash
# Changed block tracking of a file SR under the test double of xapi, with image servers and calls that are killed: what is told
# covers each block in which two VDIs differ. SEED=N repeats a run.
# guest: uml
# needs: fuse loop
# bins: sm FileSR
# memory: 512
# takes: 40
# tools: python3
set -e
modprobe -a loop fuse 2> /dev/null || :
cd "$ROOT/tests/smapiv1"
TMPDIR=$SCRATCH python3 -B -m unittest -v test_cbt_kill.Killed.test_a_server_that_is_killed_ends_the_tracking_and_no_answer_is_wrong \
  test_cbt_kill.Killed.test_calls_that_are_killed_leave_nothing_out
