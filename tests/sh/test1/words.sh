# shellcheck shell=bash
# Sourced by test1.sh: words that no driver sees, because the call is refused for its words. They change nothing.

given_disks

claim 'a command that does not exist fails with ENOMSG'
fails_with ENOMSG vdi_explode $SR "$A"

claim 'what is no UUID, no name and no label is refused'
for bad in '' x ../../etc/passwd -rf "$A"0 "${A//-/}" "{$A}" "$A/../$A" "$A"$'\n' '*'; do
    fails_with 'EINVAL|ENOVDI' vdi_get_params $SR -- "$bad"
    fails_with 'EINVAL|ENOSR' sr_get_params -- "$bad"
done

claim 'what is no size fails with EINVAL'
for bad in '' x -1 0 1.5 1GB '1 GiB' 0x10 16MiBx; do fails_with EINVAL vdi_create $SR "$D" -- "$bad"; done
fails_with ENOVDI vdi_get_params $SR "$D"

claim 'a size that nothing holds fails with E2BIG'
fails_with E2BIG vdi_create $SR "$D" 99999999TiB
fails_with E2BIG vdi_create $SR "$D" 99999999999999999999
fails_with E2BIG vdi_resize $SR "$A" 99999999TiB

claim 'too many arguments fail with E2BIG, too few with EINVAL'
fails_with E2BIG sr_get_params $SR "$A"
fails_with E2BIG vdi_get_params $SR "$A" "$B"
fails_with EINVAL vdi_get_params $SR
fails_with EINVAL vdi_create $SR "$D"
fails_with EINVAL sr_attach

claim 'an option that does not exist fails with EINVAL'
fails_with EINVAL sr_get_params $SR --explode

claim 'FORCE is TRUE or FALSE, and USER is a text'
fails_with EINVAL vdi_lock $SR "$A" MAYBE u
fails_with EINVAL vdi_lock $SR "$A" FALSE ''
fails_with EINVAL vdi_lock $SR "$A" FALSE $'two\nlines'
