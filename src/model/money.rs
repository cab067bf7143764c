//! Amounts of money, exact: limits in millionths of a US dollar, costs in billionths, since one token may cost less than a millionth.

use std::fmt;
use std::str::FromStr;

/// How many there are in a dollar.
const PER_USD: i64 = 1_000_000;
/// How many places after the point that is.
const PLACES: usize = 6;

/// Millionths of a US dollar, none or more of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroUsd(i64);

/// Not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a number like 12.50, with at most 6 places after the point")]
pub struct InvalidAmount;

impl MicroUsd {
    /// An amount of so many dollars.
    #[must_use]
    pub const fn from_usd(dollars: i32) -> Self {
        Self(dollars as i64 * PER_USD)
    }

    /// An amount of so many millionths.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// How many millionths it is.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }
}

impl FromStr for MicroUsd {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let part_digits = part.trim_end_matches('0');
        if !are_digits(whole) || !are_digits(part) || part_digits.len() > PLACES {
            return Err(InvalidAmount);
        }
        let whole: i64 = whole.parse().map_err(|_| InvalidAmount)?;
        let micros: i64 = format!("{part_digits:0<PLACES$}").parse().map_err(|_| InvalidAmount)?;
        whole.checked_mul(PER_USD).and_then(|whole| whole.checked_add(micros)).map(Self).ok_or(InvalidAmount)
    }
}

impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:0PLACES$}", self.0 / PER_USD, self.0 % PER_USD);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Billionths of a US dollar, none or more of them. Nothing that is added up of it is ever rounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(i64);

/// How many there are in a millionth.
const PER_MICRO: i64 = 1_000;

impl NanoUsd {
    /// An amount of so many billionths.
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// How many billionths it is.
    #[must_use]
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// In millionths, a part of one as a whole one.
    #[must_use]
    pub const fn rounded_up(self) -> MicroUsd {
        MicroUsd(self.0 / PER_MICRO + (self.0 % PER_MICRO > 0) as i64)
    }
}

impl From<MicroUsd> for NanoUsd {
    fn from(amount: MicroUsd) -> Self {
        Self(amount.0.saturating_mul(PER_MICRO))
    }
}

impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PER: i64 = PER_USD * PER_MICRO;
        let text = format!("{}.{:09}", self.0 / PER, self.0 % PER);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is its answer")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_exact() {
        for (text, micros, shown) in [
            ("12.50", 12_500_000, "12.5"),
            ("0.000001", 1, "0.000001"),
            ("100", 100_000_000, "100"),
            ("1.0000000", 1_000_000, "1"),
        ] {
            let amount: MicroUsd = text.parse().unwrap();
            assert_eq!((amount.micros(), amount.to_string().as_str()), (micros, shown));
        }
        for wrong in ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000001", "1,5", " 1", "9223372036855"] {
            assert!(wrong.parse::<MicroUsd>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn costs_are_exact_and_limits_are_not_fallen_short_of() {
        for (nanos, shown, micros) in [
            (0, "0", 0),
            (1, "0.000000001", 1),
            (1_000, "0.000001", 1),
            (1_001, "0.000001001", 2),
            (12_500_000_000, "12.5", 12_500_000),
            (i64::MAX, "9223372036.854775807", 9_223_372_036_854_776),
        ] {
            let cost = NanoUsd::from_nanos(nanos);
            assert_eq!((cost.to_string().as_str(), cost.rounded_up().micros()), (shown, micros));
        }
    }

    proptest! {
        #[test]
        fn an_amount_reads_as_it_is_written(micros in 0_i64..i64::MAX) {
            let amount = MicroUsd::from_micros(micros);
            prop_assert_eq!(amount.to_string().parse::<MicroUsd>().unwrap(), amount);
        }
    }
}
