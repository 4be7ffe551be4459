//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes: `1048576`, `20GiB`, `50MB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A share of a whole: a number of bytes, or `10%` of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// 0 to 100.
    Percent(u8),
    /// Bytes.
    Bytes(ByteSize),
}

impl Share {
    /// The share of `whole` in bytes.
    pub fn of(&self, whole: u64) -> u64 {
        match self {
            Self::Percent(p) => (u128::from(whole) * u128::from(*p) / 100) as u64,
            Self::Bytes(bytes) => bytes.0,
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a size: expected bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB"
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit.trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1000,
            "MB" => 1000_u64.pow(2),
            "GB" => 1000_u64.pow(3),
            "TB" => 1000_u64.pow(4),
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Bytes),
            Some(percent) => {
                percent.trim().parse().ok().filter(|p| *p <= 100).map(Self::Percent).ok_or_else(
                    || format!("{text:?} is not a share: expected 0% to 100%, or a size"),
                )
            }
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = (self.0.max(1).ilog2() / 10).min(4) as usize;
        match unit {
            0 => write!(f, "{} B", self.0),
            _ => write!(f, "{:.1} {}", self.0 as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit]),
        }
    }
}

/// A number or a text, as TOML has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self::Bytes(ByteSize(bytes))),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!("50MB".parse(), Ok(ByteSize(50_000_000)));
        assert_eq!("2 GiB".parse(), Ok(ByteSize(2 << 30)));
        assert!("99999999999TiB".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteSize(0).to_string(), "0 B");
        assert_eq!("25%".parse::<Share>().map(|s| s.of(400)), Ok(100));
    }
}
