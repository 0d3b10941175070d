//! How long the service takes from nothing to its first answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{Outcome, http, stats};

const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with this value.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(command: &[String], environment: &[(&str, &str)]) -> Outcome<Self> {
        let (program, arguments) = command.split_first().ok_or("there is no command")?;
        let mut command = Command::new(program);
        command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn measure(address: SocketAddr, runs: usize, command: &[String]) -> Outcome<()> {
    let mut times = Vec::new();
    for _ in 0..runs {
        let started = Instant::now();
        let process = Process::start(command, &[])?;
        while !answers(address) {
            if started.elapsed() > PATIENCE {
                return Err(format!("nothing answers on {address}").into());
            }
            sleep(Duration::from_micros(500));
        }
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        drop(process);
    }
    times.sort_by(f64::total_cmp);
    let [median, max] = [times.len() / 2, times.len() - 1].map(|index| stats::round(times[index]));
    stats::print("start", json!({ "runs": runs, "median_ms": median, "max_ms": max }));
    Ok(())
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = [0; 12];
    let asked = stream.write_all(&http::get("/auth/health", None)).and_then(|()| stream.read_exact(&mut answer));
    asked.is_ok() && answer.ends_with(b"200")
}
