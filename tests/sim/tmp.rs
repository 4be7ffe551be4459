use std::time::Duration;
#[test]
fn dump() {
    crate::world::DUMP.with(|d| d.set(Some((1, Duration::from_micros(2435450)))));
    crate::faults::one_chaos(1328);
}
