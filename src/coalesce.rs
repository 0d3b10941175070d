//! Request coalescing: equal requests that overlap are decided once and share the answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// Turns that other tasks get before an answer leaves. The first one has the runtime look which connections can be
/// read, the second one reads them.
const TURNS: usize = 2;

/// The requests that are being decided, by what makes them equal.
#[derive(Debug)]
pub struct Coalescer<K, V> {
    in_progress: Mutex<HashMap<K, Arc<OnceCell<V>>>>,
}

impl<K, V> Default for Coalescer<K, V> {
    fn default() -> Self {
        Self { in_progress: Mutex::default() }
    }
}

/// The part of one request in a decision.
struct Participant<'a, K: Eq + Hash, V> {
    coalescer: &'a Coalescer<K, V>,
    key: K,
    decision: Arc<OnceCell<V>>,
}

impl<K: Clone + Eq + Hash, V: Clone> Coalescer<K, V> {
    /// Decides a request, or waits for the decision about an equal one that is in progress. Says whether it was another
    /// one's. If the request that decides is given up, another one that waits decides anew.
    ///
    /// A request overlaps if it had arrived before the answer leaves; so whatever can be read by then is read first.
    pub async fn decide(&self, key: K, decide: impl Future<Output = V>) -> (V, bool) {
        let decision = Arc::clone(self.in_progress.lock().entry(key.clone()).or_default());
        let participant = Participant { decision, key, coalescer: self };
        let mut shared = true;
        let decide = async {
            shared = false;
            let decision = decide.await;
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            decision
        };
        let decision = participant.decision.get_or_init(|| decide).await.clone();
        (decision, shared)
    }
}

impl<K: Eq + Hash, V> Drop for Participant<'_, K, V> {
    /// The first to leave with the decision takes the entry away; so does the last to leave without one.
    fn drop(&mut self) {
        let mut in_progress = self.coalescer.in_progress.lock();
        let ours = in_progress.get(&self.key).is_some_and(|decision| Arc::ptr_eq(decision, &self.decision));
        if ours && (self.decision.initialized() || Arc::strong_count(&self.decision) == 2) {
            in_progress.remove(&self.key);
        }
    }
}
