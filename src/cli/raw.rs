//! Commands whose arguments clap hands on as they stand: they take the settings' flags, read by `config`.

use std::ffi::OsString;

/// Arguments as they stand.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct RawArgs {
    /// The flags of `kvstore serve`, and the command's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "-NAME VALUE")]
    pub args: Vec<OsString>,
}
