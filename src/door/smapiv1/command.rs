//! The commands of SMAPIv1; SMAPIv1, "Commands".

macro_rules! commands {
    ($($variant:ident $name:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Command {
            $($variant,)*
        }

        impl Command {
            pub const ALL: &[Command] = &[$(Command::$variant,)*];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Command::$variant => $name,)*
                }
            }
        }
    };
}

commands! {
    SrGetDriverInfo "sr_get_driver_info",
    SrCreate "sr_create",
    SrDelete "sr_delete",
    SrAttach "sr_attach",
    SrDetach "sr_detach",
    SrScan "sr_scan",
    SrUpdate "sr_update",
    SrProbe "sr_probe",
    SrContentType "sr_content_type",
    VdiCreate "vdi_create",
    VdiUpdate "vdi_update",
    VdiIntroduce "vdi_introduce",
    VdiDelete "vdi_delete",
    VdiAttach "vdi_attach",
    VdiDetach "vdi_detach",
    VdiActivate "vdi_activate",
    VdiDeactivate "vdi_deactivate",
    VdiSnapshot "vdi_snapshot",
    VdiClone "vdi_clone",
    VdiResize "vdi_resize",
    VdiResizeOnline "vdi_resize_online",
    VdiRevert "vdi_revert",
    VdiCompose "vdi_compose",
    VdiGenerateConfig "vdi_generate_config",
    VdiAttachFromConfig "vdi_attach_from_config",
    VdiDetachFromConfig "vdi_detach_from_config",
    VdiEpochBegin "vdi_epoch_begin",
    VdiEpochEnd "vdi_epoch_end",
    VdiEnableCbt "vdi_enable_cbt",
    VdiDisableCbt "vdi_disable_cbt",
    VdiDataDestroy "vdi_data_destroy",
    VdiListChangedBlocks "vdi_list_changed_blocks",
}
