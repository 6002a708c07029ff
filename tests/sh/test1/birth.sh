# shellcheck shell=bash
# Sourced by test1.sh: An SR comes to be.

claim 'sr_get_params of an SR that is not there fails and prints nothing'
fails_with "$absent" sr_get_params $SR

claim 'sr_delete of an SR that is not there succeeds'
must sr_delete $SR
prints ''

claim 'sr_attach of an SR that is not there fails'
fails_with "$absent" sr_attach $SR

claim 'vdi_create on an SR that is not there fails'
fails_with "$absent" vdi_create $SR "$A" 16

claim 'sr_create of more than there is fails with ENOSPC'
fails_with ENOSPC sr_create $SR 4096TiB

claim 'and leaves no SR behind'
fails_with "$absent" sr_get_params $SR

claim 'sr_create where there is nothing fails with ENODEV'
if [ -z "$NOWHERE" ]; then skip 'the row names no such place'; fi
place=$DCONF DCONF=$NOWHERE
fails_with ENODEV sr_create $SR
DCONF=$place

claim 'sr_create makes an SR and prints nothing'
must sr_create $SR
prints ''

claim 'sr_create of the same UUID fails with EEXIST'
fails_with EEXIST sr_create $SR
says $SR

claim 'sr_create of another UUID in the same place fails with EBUSY and names the SR that is there'
if [ $ALONE = no ]; then skip 'a dconf of this type may hold several'; fi
fails_with EBUSY sr_create $OTHER_SR
says $SR

claim 'sr_attach succeeds, and again'
must sr_attach $SR
prints ''
must sr_attach $SR
prints ''

claim 'sr_get_params says what a new SR is'
must sr_get_params $SR
shows uuid $SR
shows type "$TYPE"
shows VDIs ''
shows physical_utilisation 0
shows virtual_allocation 0
field size
true_that [ "$FIELD" -ge $((64 * MIB)) ]

claim 'an answer is one line'
true_that one_line "$OUT"

claim 'sr_scan of a new SR has no VDIs'
must sr_scan $SR
shows uuid $SR
shows VDIs ''

claim 'sr_content_type is one word'
must sr_content_type $SR
true_that grep -qxE '[a-z0-9]+' "$SCRATCH/stdout"

claim 'sr_probe finds the SR by its place'
SHOWN="sm sr_probe -t $TYPE -d $DCONF"
true_that grep -q "(sr (uuid . \"$SR\")" <("$SM" sr_probe -t "$TYPE" -d "$DCONF")

claim 'the dconf may be an association list'
if [ -z "$LIST" ]; then skip 'the row has none'; fi
place=$DCONF DCONF=$LIST
must sr_get_params $SR
shows uuid $SR
DCONF=$place

claim 'options may stand anywhere, with or without a space'
SHOWN="sm -d… -t… in other places"
for line in "-t$TYPE|-d$DCONF|sr_get_params|$SR" "sr_get_params|$SR|-d|$DCONF|-t|$TYPE" "sr_get_params|-t$TYPE|$SR|-d$DCONF"; do
    IFS='|' read -r -a words <<<"$line"
    true_that grep -q "(uuid . \"$SR\")" <("$SM" "${words[@]}" 2>&1)
done
