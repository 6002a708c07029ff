//! The methods of SMAPIv3 and their parameters, in the order in which a command line has them; SMAPIv3, "SR interface", "Volume
//! interface", "Datapath interface" and "static-vdis".

use crate::door::smapiv1::command::Command;

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A signed integer of 64 bits.
    Number,
    Flag,
    /// An object with strings as values.
    Map,
}

/// The plug-in that a method belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Both kinds of plug-in.
    Plugin,
    Volume,
    Datapath,
}

/// A parameter: its name and its type.
pub type Parameter = (&'static str, Kind);

const DBG: Parameter = ("dbg", Kind::Text);
const SR: Parameter = ("sr", Kind::Text);
const KEY: Parameter = ("key", Kind::Text);
const URI: Parameter = ("uri", Kind::Text);
const DOMAIN: Parameter = ("domain", Kind::Text);
const CONFIGURATION: Parameter = ("configuration", Kind::Map);

macro_rules! methods {
    ($($variant:ident $name:literal $interface:ident [$($parameter:expr),*] $command:ident)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $($variant,)*
        }

        impl Method {
            pub const ALL: &[Method] = &[$(Method::$variant,)*];

            /// The name of the method, and of its executable.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Method::$variant => $name,)*
                }
            }

            /// The plug-in that the method belongs to.
            pub const fn interface(self) -> Interface {
                match self {
                    $(Method::$variant => Interface::$interface,)*
                }
            }

            /// The parameters, in the order of a command line.
            pub const fn parameters(self) -> &'static [Parameter] {
                match self {
                    $(Method::$variant => &[DBG, $($parameter,)*],)*
                }
            }

            /// The command of SMAPIv1 that does the same. The codes of failures are those of that command.
            pub const fn command(self) -> Command {
                match self {
                    $(Method::$variant => Command::$command,)*
                }
            }
        }
    };
}

methods! {
    PluginQuery "Plugin.Query" Plugin [] SrGetDriverInfo
    PluginDiagnostics "Plugin.diagnostics" Plugin [] SrGetDriverInfo

    SrProbe "SR.probe" Volume [CONFIGURATION] SrProbe
    SrCreate "SR.create" Volume [("uuid", Kind::Text), CONFIGURATION, ("name", Kind::Text), ("description", Kind::Text)] SrCreate
    SrAttach "SR.attach" Volume [CONFIGURATION] SrAttach
    SrDetach "SR.detach" Volume [SR] SrDetach
    SrDestroy "SR.destroy" Volume [SR] SrDelete
    SrStat "SR.stat" Volume [SR] SrUpdate
    SrSetName "SR.set_name" Volume [SR, ("new_name", Kind::Text)] SrUpdate
    SrSetDescription "SR.set_description" Volume [SR, ("new_description", Kind::Text)] SrUpdate
    SrLs "SR.ls" Volume [SR] SrScan

    VolumeCreate "Volume.create" Volume
        [SR, ("name", Kind::Text), ("description", Kind::Text), ("size", Kind::Number), ("sharable", Kind::Flag)] VdiCreate
    VolumeSnapshot "Volume.snapshot" Volume [SR, KEY] VdiSnapshot
    VolumeClone "Volume.clone" Volume [SR, KEY] VdiClone
    VolumeDestroy "Volume.destroy" Volume [SR, KEY] VdiDelete
    VolumeRevert "Volume.revert" Volume [SR, ("snapshot", Kind::Text), KEY] VdiRevert
    VolumeSetName "Volume.set_name" Volume [SR, KEY, ("new_name", Kind::Text)] VdiUpdate
    VolumeSetDescription "Volume.set_description" Volume [SR, KEY, ("new_description", Kind::Text)] VdiUpdate
    VolumeSet "Volume.set" Volume [SR, KEY, ("k", Kind::Text), ("v", Kind::Text)] VdiUpdate
    VolumeUnset "Volume.unset" Volume [SR, KEY, ("k", Kind::Text)] VdiUpdate
    VolumeResize "Volume.resize" Volume [SR, KEY, ("new_size", Kind::Number)] VdiResize
    VolumeStat "Volume.stat" Volume [SR, KEY] VdiUpdate
    VolumeEnableCbt "Volume.enable_cbt" Volume [SR, KEY] VdiEnableCbt
    VolumeDisableCbt "Volume.disable_cbt" Volume [SR, KEY] VdiDisableCbt
    VolumeDataDestroy "Volume.data_destroy" Volume [SR, KEY] VdiDataDestroy
    VolumeListChangedBlocks "Volume.list_changed_blocks" Volume
        [SR, KEY, ("key2", Kind::Text), ("offset", Kind::Number), ("length", Kind::Number)] VdiListChangedBlocks

    DatapathAttach "Datapath.attach" Datapath [URI, DOMAIN] VdiAttach
    DatapathActivate "Datapath.activate" Datapath [URI, DOMAIN] VdiActivate
    DatapathActivateReadonly "Datapath.activate_readonly" Datapath [URI, DOMAIN] VdiActivate
    DatapathDeactivate "Datapath.deactivate" Datapath [URI, DOMAIN] VdiDeactivate
    DatapathDetach "Datapath.detach" Datapath [URI, DOMAIN] VdiDetach
}
