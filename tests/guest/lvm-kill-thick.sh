#!/bin/bash
# Killed before and after each program that changes something, a call on a thick SR leaves the old state or the new one: the
# same call again completes it, and no volume and no device is left over or lost. Of the calls that a thick and a thin SR have
# in common, this suite takes a quarter of the points, others than lvm-kill-thin, and of its own calls a half; which ones
# depends on the day. With LONG=y, around every program.
# guest: uml
# bins: sm
# memory: 512
# disks: 200M 200M
# takes: 125
# tools: lvcreate wipefs thin_check
set -u
KIND=thick
# shellcheck source-path=SCRIPTDIR source=lvm-kill.inc
. "$ROOT/tests/guest/lvm-kill.inc"
