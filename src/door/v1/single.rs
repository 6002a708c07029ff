//! One command of many. clap builds every command of an enum before it looks at a line, which takes longer than most calls
//! do; here the line's command alone is built.

/// Makes an enum of commands, written as for clap's `Subcommand`. The commands have the names of the variants in snake case, as
/// SR API v1.0 spells them.
///
/// Each variant is a clap enum of its own, so that clap alone says what `///`, `#[arg]` and `#[command]` mean.
macro_rules! commands {
    ($(#[$enum_meta:meta])* pub enum $Enum:ident {
        $($(#[$meta:meta])* $Name:ident $(($Args:ty))? $({ $($(#[$field_meta:meta])* $field:ident: $Type:ty),* $(,)? })?),* $(,)?
    }) => {
        $(#[$enum_meta])*
        pub enum $Enum {
            $($Name $(($Args))? $({ $($field: $Type),* })?),*
        }

        impl $Enum {
            /// `command` with the command called `word`, or with all of them.
            pub fn add_to(mut command: clap::Command, word: Option<&str>) -> clap::Command {
                $(if word.is_none_or(|word| $crate::door::v1::single::is_called(stringify!($Name), word)) {
                    command = <single::$Name as clap::Subcommand>::augment_subcommands(command);
                })*
                command
            }

            /// # Errors
            /// Those of the parser.
            pub fn from_arg_matches(matches: &clap::ArgMatches) -> Result<$Enum, clap::Error> {
                let word = matches.subcommand_name().unwrap_or_default();
                $(if $crate::door::v1::single::is_called(stringify!($Name), word) {
                    return <single::$Name as clap::FromArgMatches>::from_arg_matches(matches).map($Enum::from);
                })*
                Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand))
            }
        }

        mod single {
            use super::*;

            $(#[derive(clap::Subcommand)]
            #[command(rename_all = "snake_case")]
            pub enum $Name {
                $(#[$meta])*
                $Name $(($Args))? $({ $($(#[$field_meta])* $field: $Type),* })?
            }

            impl From<$Name> for $Enum {
                fn from(command: $Name) -> $Enum {
                    match command { $crate::door::v1::single::variant!($Name::$Name, command $(, ($Args))? $(, { $($field),* })?) =>
                        $crate::door::v1::single::variant!($Enum::$Name, command $(, ($Args))? $(, { $($field),* })?) }
                }
            })*
        }
    };
}

/// A variant, as a pattern or as an expression.
macro_rules! variant {
    ($Enum:ident :: $Name:ident, $inner:ident) => { $Enum::$Name };
    ($Enum:ident :: $Name:ident, $inner:ident, ($Args:ty)) => { $Enum::$Name($inner) };
    ($Enum:ident :: $Name:ident, $inner:ident, { $($field:ident),* }) => { $Enum::$Name { $($field),* } };
}

pub(super) use {commands, variant};

/// Whether `word` is the name in snake case of a variant. Also for a word with fewer or more `_`, which the parser refuses.
pub fn is_called(variant: &str, word: &str) -> bool {
    let letters = word.bytes().filter(|letter| *letter != b'_');
    letters.eq(variant.bytes().map(|letter| letter.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_snake_case_is_a_variant() {
        assert!(is_called("VdiGetParams", "vdi_get_params") && is_called("SrScan", "sr_scan"));
        assert!(!is_called("VdiGetParams", "vdi_get_param") && !is_called("SrScan", "SR_SCAN"));
        assert!(!is_called("SrScan", ""));
    }
}
