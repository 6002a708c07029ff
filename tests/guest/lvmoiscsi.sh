#!/bin/bash
# The compliance suite for SRs on a LUN of an iSCSI target. What many calls at once do to a volume group is shown by lvm-thin, the
# locks by lvm-thick, and what is refused for its words alone by `make check` on a file SR; with LONG=y here as well.
# guest: uml
# bins: sm
# memory: 768
# takes: 110
# tools: iscsiadm iscsid lvcreate
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=compliance.inc
. "$ROOT/tests/guest/compliance.inc"
# shellcheck source-path=SCRIPTDIR source=iscsi.inc
. "$ROOT/tests/guest/iscsi.inc"
lun 1 600M && target $IQN 127.0.0.1:3260 && maps $IQN 0 1 || exit 1
initiator
complies_by_turns 1 2 'words many locks errors' -t lvmoiscsi -d "iscsi@127.0.0.1/$IQN/$ID"
status=$?
claim 'no session, user, portal or record is left' nothing_left
summary && exit $status
