//! A decimal number, as JSON writes it and as Postgres has it. Pure.

/// The most digits that Postgres has room for, before the point of a numeric and behind it.
const DIGITS_BEFORE: i64 = 131_072;
const DIGITS_BEHIND: u16 = 16_383;

/// A decimal number as it is written, without an exponent.
#[derive(Debug, PartialEq, Eq)]
pub struct Decimal {
    /// Whether it is below 0.
    pub is_negative: bool,
    /// Its digits, from the first that is not 0.
    pub digits: Vec<u8>,
    /// How many digits are before the point; fewer than 0 where zeros follow it.
    pub before: i64,
    /// How many digits are behind the point.
    pub behind: u16,
}

impl Decimal {
    /// Of a JSON number, if Postgres has room for it.
    pub fn of(number: &str) -> Option<Self> {
        let (is_negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let exponent: i64 = exponent.parse().ok()?;
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|digit| digit - b'0').collect();
        let zeros = all.iter().take_while(|digit| **digit == 0).count();
        let digits = all[zeros..].to_vec();
        let before = i64::try_from(whole.len()).ok()?.checked_add(exponent)? - i64::try_from(zeros).ok()?;
        let behind = i64::try_from(fraction.len()).ok()?.checked_sub(exponent)?.max(0);
        let behind = u16::try_from(behind).ok().filter(|behind| *behind <= DIGITS_BEHIND)?;
        let is_zero = digits.is_empty();
        let before = if is_zero { 0 } else { before };
        (before <= DIGITS_BEFORE).then_some(Self { is_negative: is_negative && !is_zero, digits, before, behind })
    }

    /// This times ten to the power of `digits`, if it is whole, or cut if it may be.
    pub fn scaled(&self, digits: i64, may_cut: bool) -> Option<i64> {
        let wanted = usize::try_from(self.before + digits).unwrap_or(0);
        let (kept, rest) = self.digits.split_at(wanted.min(self.digits.len()));
        if !may_cut && rest.iter().any(|digit| *digit != 0) || wanted > 19 {
            return None;
        }
        let zeros = std::iter::repeat_n(&0, wanted - kept.len());
        let sign = if self.is_negative { -1 } else { 1 };
        kept.iter()
            .chain(zeros)
            .try_fold(0_i64, |number, digit| number.checked_mul(10)?.checked_add(sign * i64::from(*digit)))
    }

    /// The sign, the weight of the first group, and groups of four digits, as Postgres has them: each stands for 10,000 times the next.
    pub fn groups(&self) -> (i16, Vec<u16>) {
        let weight = (self.before - 1).div_euclid(4);
        // The first group begins with zeros.
        let lead = usize::try_from((weight + 1) * 4 - self.before).expect("three at most");
        let padded: Vec<_> = std::iter::repeat_n(0, lead).chain(self.digits.iter().copied()).collect();
        let group = |group: &[u8]| (0..4).fold(0, |sum, at| sum * 10 + u16::from(group.get(at).copied().unwrap_or(0)));
        let mut groups: Vec<_> = padded.chunks(4).map(group).collect();
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let weight = if groups.is_empty() { 0 } else { weight };
        (i16::try_from(weight).expect("a number has at most 131,072 digits before its point"), groups)
    }
}
