//! `auth doctor`.

use std::process::ExitCode;

use super::CliError;
use super::output::{print, print_json};
use crate::config::{Config, Given};
use crate::service::doctor::{self, Finding, Level};

/// Prints every finding. The exit code is 1 where the service cannot do its work.
pub(super) async fn run(settings: &Given<Config>, json: bool) -> Result<ExitCode, CliError> {
    let findings = doctor::examine(settings).await;
    if json {
        print_json(&findings)?;
    } else {
        findings.iter().try_for_each(print_finding)?;
    }
    let works = findings.iter().all(|finding| finding.level != Level::Fail);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_finding(finding: &Finding) -> Result<(), CliError> {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Fail => "fail",
    };
    print(&format!("{level:<5} {:<12} {}", finding.check, finding.found))?;
    finding.cure.as_ref().map_or(Ok(()), |cure| print(&format!("{:19}do: {cure}", "")))
}
