//! Slow work, away from the runtimes: so many threads for each who has it done, and no more.

use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Places on the blocking threads, which all share: whoever fills its own keeps nobody else from his.
#[derive(Debug, Clone)]
pub struct Aside(Arc<Semaphore>);

impl Aside {
    /// So many at the same time.
    pub fn new(permits: usize) -> Self {
        Self(Arc::new(Semaphore::new(permits)))
    }

    /// Does something that may block. Cancel-safe, but what has begun goes on, and keeps its permit until it ends.
    ///
    /// # Errors
    /// It panicked, or the process ends.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let permit = self.0.clone().acquire_owned().await.map_err(io::Error::other)?;
        let kept = move || {
            let done = work();
            drop(permit);
            done
        };
        tokio::task::spawn_blocking(kept).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_gives_up_still_takes_its_place_and_nobody_elses() {
        let (one, other) = (Aside::new(2), Aside::new(1));
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(parking_lot::Mutex::new(held));
        for _ in 0..2 {
            let held = held.clone();
            let work = one.run(move || held.lock().recv());
            assert!(tokio::time::timeout(Duration::from_millis(20), work).await.is_err());
        }
        let third = one.run(|| 3);
        assert!(tokio::time::timeout(Duration::from_millis(20), third).await.is_err());
        assert_eq!(other.run(|| 1).await.unwrap(), 1);
        drop(release);
        assert_eq!(one.run(|| 3).await.unwrap(), 3);
    }
}
