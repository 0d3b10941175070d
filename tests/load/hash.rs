//! The limit of everything that hashes passwords: the same function of the same crate with the same parameters, on
//! threads that do nothing else, each in memory of its own that is used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};

use crate::Outcome;

/// The service's defaults.
pub(crate) fn cost() -> Outcome<Argon2<'static>> {
    let params = Params::new(7168, 5, 1, Some(32)).map_err(|error| error.to_string())?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes per second.
pub(crate) fn rate(threads: usize, length: Duration) -> Outcome<f64> {
    let (argon2, stop, done) = (cost()?, Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (argon2, stop, done) = (argon2.clone(), Arc::clone(&stop), Arc::clone(&done));
            thread::spawn(move || {
                let mut memory = vec![Block::default(); argon2.params().block_count()];
                let mut output = [0; 32];
                while !stop.load(Ordering::Relaxed) {
                    argon2
                        .hash_password_into_with_memory(b"load-pass-1", b"sixteen bytes...", &mut output, &mut memory)
                        .expect("the parameters are valid");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // Memory is touched and clocks are up before counting begins.
    thread::sleep(Duration::from_millis(300));
    let (started, before) = (Instant::now(), done.load(Ordering::Relaxed));
    thread::sleep(length);
    let (took, count) = (started.elapsed(), done.load(Ordering::Relaxed) - before);
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a hashing thread failed")?;
    }
    Ok(crate::stats::rate(count, took))
}
