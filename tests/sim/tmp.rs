use std::time::Duration;
#[test]
fn dump() {
    crate::world::DUMP.with(|d| d.set(Some((2, Duration::from_secs(10)))));
    crate::faults::one_chaos(1359);
}
