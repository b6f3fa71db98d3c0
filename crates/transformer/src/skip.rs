//! `SKIP`: the objects that a person has decided to do without. Pure.

use std::{ops::RangeInclusive, str::FromStr};

use shared::object::Sequence;

/// Numbers and ranges of them, as in `17,40-52`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skip(Vec<RangeInclusive<Sequence>>);

impl Skip {
    /// Whether the object is to be skipped.
    pub fn contains(&self, sequence: Sequence) -> bool {
        self.0.iter().any(|range| range.contains(&sequence))
    }
}

impl FromStr for Skip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(range).collect::<Result<_, _>>().map(Self)
    }
}

fn range(part: &str) -> Result<RangeInclusive<Sequence>, String> {
    let wrong = || format!("`{part}` is neither a sequence nor a range of them, as in 17,40-52");
    let sequence = |text: &str| {
        text.trim().parse::<u64>().ok().and_then(|number| Sequence::try_from(number).ok()).ok_or_else(wrong)
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let range = sequence(first)?..=sequence(last)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_skipped_and_nothing_else() {
        let skip: Skip = "17, 40-52,".parse().unwrap();
        let skipped: Vec<u64> = (1..100).filter(|number| skip.contains(Sequence::try_from(*number).unwrap())).collect();
        assert_eq!(skipped, [vec![17], (40..=52).collect()].concat());
        assert_eq!("".parse(), Ok(Skip::default()));
        for wrong in ["x", "0", "5-3", "1-2-3", "-5", "1-"] {
            assert!(wrong.parse::<Skip>().is_err(), "{wrong}");
        }
    }
}
