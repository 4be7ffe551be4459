//! Whether a tunnel's peer behaves: it answers, it gets on, it does not flood. Pure.
//!
//! Invariants: a peer that owes an answer and brings less than the floor in a
//! window is given up; so is one of whom nothing is heard; news above a rate end
//! the tunnel.

use std::time::Duration;

use crate::wire::Refusal;

/// How patient a node is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A silent peer is asked for a sign of life after this long.
    pub ping_after: Duration,
    /// And given up after this long.
    pub dead_after: Duration,
    /// A peer that owes answers must bring something in every such window,
    pub window: Duration,
    /// at least this many bytes per second of it.
    pub floor: u64,
    /// A peer must take what is sent to it within this time: 64 KiB.
    pub write: Duration,
    /// An answer that can't be begun within this time is put off with busy.
    /// Shorter than the window, or honest peers with much to do would be given up.
    pub turn: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(10),
            dead_after: Duration::from_secs(30),
            window: Duration::from_secs(10),
            floor: 1024,
            write: Duration::from_secs(20),
            turn: Duration::from_secs(4),
        }
    }
}

/// Messages per second that are not content, and their bytes; four seconds' worth
/// of them may come at once.
const NEWS_RATE: u64 = 2000;
const NEWS_BYTES: u64 = 2 << 20;
/// Requests per second beyond what a node takes on.
const REFUSED_RATE: u64 = 100;
/// Seconds of such rates that may come at once.
const AT_ONCE: u64 = 4;

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is well.
    Fine,
    /// Ask for a sign of life with this number.
    Ping(u64),
    /// Give the peer up.
    GiveUp,
}

/// The behaviour of one tunnel's peer.
#[derive(Debug)]
pub(super) struct Watch {
    patience: Patience,
    heard: Duration,
    ping: u64,
    pinged: Option<Duration>,
    /// Start of the window, and bytes in it, while an answer is owed.
    window: Option<(Duration, u64)>,
    /// Lanes on which this node does not read, for reasons of its own.
    held: u32,
    news: Meter,
    news_bytes: Meter,
    refused: Meter,
}

/// Counts against a rate: a vessel that leaks `rate` a second and holds
/// [`AT_ONCE`] seconds of it.
#[derive(Debug)]
struct Meter {
    rate: u64,
    level: f64,
    at: Duration,
}

impl Meter {
    fn new(rate: u64) -> Self {
        Self { rate, level: 0.0, at: Duration::ZERO }
    }

    /// Whether so many more are within the rate.
    fn count(&mut self, now: Duration, more: u64) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level - passed * self.rate as f64).max(0.0) + more as f64;
        self.level <= (self.rate * AT_ONCE) as f64
    }
}

impl Watch {
    /// A watch that begins now.
    pub(super) fn new(now: Duration, patience: Patience) -> Self {
        Self {
            patience,
            heard: now,
            ping: 0,
            pinged: None,
            window: None,
            held: 0,
            news: Meter::new(NEWS_RATE),
            news_bytes: Meter::new(NEWS_BYTES),
            refused: Meter::new(REFUSED_RATE),
        }
    }

    /// Any frame came.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = self.heard.max(now);
    }

    /// A message came that is not content.
    ///
    /// # Errors
    /// [`Refusal::Flood`].
    pub(super) fn news(&mut self, now: Duration, bytes: u64) -> Result<(), Refusal> {
        let fine = self.news.count(now, 1) & self.news_bytes.count(now, bytes);
        if fine { Ok(()) } else { Err(Refusal::Flood) }
    }

    /// A request came that is beyond what this node takes on.
    ///
    /// # Errors
    /// [`Refusal::Flood`].
    pub(super) fn refused(&mut self, now: Duration) -> Result<(), Refusal> {
        if self.refused.count(now, 1) { Ok(()) } else { Err(Refusal::Flood) }
    }

    /// Whether the peer owes an answer.
    pub(super) fn owes(&mut self, now: Duration, owes: bool) {
        match (owes, &self.window) {
            (true, None) => self.window = Some((now, 0)),
            (false, Some(_)) => self.window = None,
            _ => {}
        }
    }

    /// Bytes of an answer came.
    pub(super) fn answered(&mut self, bytes: u64) {
        if let Some((_, sum)) = &mut self.window {
            *sum += bytes;
        }
    }

    /// An answer came that is not content: busy, not there, the end.
    pub(super) fn settled(&mut self, now: Duration) {
        if let Some(window) = &mut self.window {
            *window = (now, 0);
        }
    }

    /// A pong came: the round trip, if it was for the last ping.
    pub(super) fn pong(&mut self, now: Duration, number: u64) -> Option<Duration> {
        let sent = self.pinged.filter(|_| number == self.ping)?;
        self.pinged = None;
        Some(now.saturating_sub(sent))
    }

    /// A ping is sent now for its round trip; its number.
    pub(super) fn ping(&mut self, now: Duration) -> u64 {
        self.ping += 1;
        self.pinged = Some(now);
        self.ping
    }

    /// A lane is not read for a while: what does not come is not the peer's fault.
    pub(super) fn hold(&mut self) {
        self.held += 1;
    }

    /// The lane is read again.
    pub(super) fn go_on(&mut self, now: Duration) {
        self.held = self.held.saturating_sub(1);
        self.heard(now);
        self.settled(now);
    }

    /// Looks at the clock.
    pub(super) fn tick(&mut self, now: Duration) -> Verdict {
        if self.held > 0 {
            return Verdict::Fine;
        }
        if now >= self.heard + self.patience.dead_after {
            return Verdict::GiveUp;
        }
        if let Some((start, bytes)) = self.window
            && now >= start + self.patience.window
        {
            let least = self.patience.window.as_secs_f64() * self.patience.floor as f64;
            if (bytes as f64) < least {
                return Verdict::GiveUp;
            }
            self.window = Some((now, 0));
        }
        let silent = now >= self.heard + self.patience.ping_after;
        let pinged = self.pinged.is_some_and(|at| now < at + self.patience.ping_after);
        if silent && !pinged {
            return Verdict::Ping(self.ping(now));
        }
        Verdict::Fine
    }

    /// When to look again, at the latest.
    pub(super) fn next(&self, now: Duration) -> Duration {
        let silence = match self.pinged {
            Some(at) => at + self.patience.ping_after,
            None => self.heard + self.patience.ping_after,
        };
        let window = self.window.map(|(start, _)| start + self.patience.window);
        let dead = self.heard + self.patience.dead_after;
        let next = window.into_iter().chain([dead]).fold(silence, Duration::min);
        next.max(now + Duration::from_millis(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn watch() -> Watch {
        Watch::new(Duration::ZERO, Patience::default())
    }

    #[test]
    fn a_silent_peer_is_asked_and_then_given_up() {
        let mut watch = watch();
        assert_eq!(watch.next(Duration::ZERO), S * 10);
        assert_eq!(watch.tick(S * 9), Verdict::Fine);
        assert_eq!(watch.tick(S * 10), Verdict::Ping(1));
        assert_eq!(watch.tick(S * 11), Verdict::Fine);
        watch.heard(S * 12);
        assert_eq!(watch.pong(S * 12, 7), None);
        assert_eq!(watch.pong(S * 12, 1), Some(S * 2));
        assert_eq!(watch.tick(S * 22), Verdict::Ping(2));
        assert_eq!(watch.tick(S * 42), Verdict::GiveUp);
    }

    #[test]
    fn a_peer_that_owes_must_get_on() {
        let mut watch = watch();
        watch.owes(S, true);
        for second in 1..=10 {
            watch.heard(S * second);
            watch.answered(2000);
        }
        watch.owes(S * 5, true);
        assert_eq!(watch.next(S * 10), S * 11);
        assert_eq!(watch.tick(S * 11), Verdict::Fine);
        // One byte a second is no progress, however much is heard.
        for second in 11..=20 {
            watch.heard(S * second);
            watch.answered(1);
        }
        assert_eq!(watch.tick(S * 20), Verdict::Fine);
        assert_eq!(watch.tick(S * 21), Verdict::GiveUp);
    }

    #[test]
    fn one_that_says_it_is_busy_is_not_stalled() {
        let mut watch = watch();
        watch.owes(S, true);
        watch.heard(S * 10);
        watch.settled(S * 10);
        assert_eq!(watch.tick(S * 12), Verdict::Fine);
        watch.owes(S * 13, false);
        watch.heard(S * 35);
        assert_eq!(watch.tick(S * 36), Verdict::Fine);
    }

    #[test]
    fn a_peer_is_not_blamed_for_what_is_not_read() {
        let mut watch = watch();
        watch.owes(S, true);
        watch.hold();
        assert_eq!(watch.tick(S * 50), Verdict::Fine);
        watch.go_on(S * 50);
        assert_eq!(watch.tick(S * 55), Verdict::Fine);
        assert_eq!(watch.tick(S * 60), Verdict::GiveUp);
    }

    #[test]
    fn a_flood_of_news_is_told_from_much_news() {
        let mut watch = watch();
        for second in 0..100u32 {
            for n in 0..1000 {
                let now = S * second + Duration::from_millis(n);
                assert_eq!(watch.news(now, 100), Ok(()), "{now:?}");
            }
        }
        assert!((0..7000).all(|_| watch.news(S * 101, 100).is_ok()));
        assert_eq!((0..2000).find_map(|_| watch.news(S * 101, 100).err()), Some(Refusal::Flood));
        let mut watch = self::watch();
        assert!((0..128).all(|_| watch.news(S, 64 << 10).is_ok()));
        assert_eq!(watch.news(S, 64 << 10), Err(Refusal::Flood));
        assert!((0..400).all(|_| watch.refused(S).is_ok()));
        assert_eq!(watch.refused(S), Err(Refusal::Flood));
    }
}
