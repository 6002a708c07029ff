#!/bin/bash
# LVMoISCSISR as xapi calls it: every fault of sr_probe with its text and its document, secrets, the life of an SR.
# guest: uml
# bins: sm
# memory: 768
# takes: 60
# tools: iscsiadm iscsid lvcreate python3
set -u
# shellcheck source-path=SCRIPTDIR source=claims.inc
. "$ROOT/tests/guest/claims.inc"
# shellcheck source-path=SCRIPTDIR source=iscsi.inc
. "$ROOT/tests/guest/iscsi.inc"
CLOSED=iqn.2003-01.org.example:t2
lun 1 100M && target $IQN 127.0.0.1:3260 && maps $IQN 0 1 && OPEN_ID=$ID && lun 2 64M && target $CLOSED 127.0.0.1:3262 || exit 1
dir=$TARGETS/iscsi/$CLOSED/tpgt_1
maps $CLOSED 0 2 && echo 1 > "$dir/attrib/authentication" && echo 0 > "$dir/attrib/generate_node_acls" && mkdir "$dir/acls/$ME" &&
  printf host1 > "$dir/acls/$ME/auth/userid" && printf secret-of-host1 > "$dir/acls/$ME/auth/password" &&
  mkdir "$dir/acls/$ME/lun_0" && ln -s "$dir/lun/lun_0" "$dir/acls/$ME/lun_0/it" || exit 1
initiator
mkdir -p "$SCRATCH/bin"
for name in sm LVMoISCSISR; do ln -sf "$BIN/sm" "$SCRATCH/bin/$name"; done
status=0
facts="{\"open\": \"$IQN\", \"id\": \"$OPEN_ID\", \"closed\": \"$CLOSED\", \"closed_id\": \"$ID\", \"user\": \"host1\", \"password\": \"secret-of-host1\", \"initiator\": \"$ME\"}"
(cd "$ROOT/tests/smapiv1" && ISCSI=$facts BIN=$SCRATCH/bin TMPDIR=$SCRATCH python3 -B -m unittest -v test_iscsi 2>&1) || status=1
claim 'no session or record is left' nothing_left
summary && exit $status
