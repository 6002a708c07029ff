//! Points in time, as people and other programs read them.

use std::fmt;

/// A number of seconds since 1970-01-01 UTC. It is shown as RFC 3339 has it: `2026-11-27T01:07:35Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc(pub u64);

impl Utc {
    /// `2026-11-27 01:07`, for tables.
    pub fn to_the_minute(self) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, _) = self.clock();
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
    }

    /// `20261127T01:07:35Z`, as XML-RPC has it.
    pub fn to_xmlrpc(self) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, second) = self.clock();
        format!("{year:04}{month:02}{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// `20261127T010735Z`, for names.
    pub fn to_basic(self) -> String {
        let (year, month, day) = self.date();
        let (hour, minute, second) = self.clock();
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
    }

    /// The first second of a day of the Gregorian calendar; of a year before 1970, 1970-01-01. A year begins in March here, as in
    /// [`Utc::date`].
    pub fn of_date(year: u64, month: u64, day: u64) -> Utc {
        let (year, month) = if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day.saturating_sub(1);
        Utc(days.saturating_sub(719_468) * 86_400)
    }

    /// Reads `2026-11-27T01:07:35Z` or `20261127T010735Z`. `None` for any other text, and for what no calendar or clock shows.
    pub fn parse(text: &str) -> Option<Utc> {
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        let number = |at: std::ops::Range<usize>| digits.get(at)?.parse::<u64>().ok();
        let day = Utc::of_date(number(0..4)?, number(4..6)?, number(6..8)?);
        let utc = Utc(day.0 + number(8..10)? * 3600 + number(10..12)? * 60 + number(12..14)?);
        // What is no date or no time of a day comes out as another one.
        (utc.to_string() == text || utc.to_basic() == text).then_some(utc)
    }

    fn clock(self) -> (u64, u64, u64) {
        (self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60)
    }

    /// Year, month and day of the Gregorian calendar. A year begins in March here, so that a leap day is its last.
    fn date(self) -> (u64, u64, u64) {
        const DAYS_OF_400_YEARS: u64 = 146_097;
        // From 0000-03-01 to 1970-01-01.
        let days = self.0 / 86_400 + 719_468;
        let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        (era * 400 + year + u64::from(month <= 2), month, day)
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let (year, month, day) = self.date();
        let (hour, minute, second) = self.clock();
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dates are those of `date -u -d @SECONDS`.
    #[test]
    fn a_date_is_that_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_741_655, "2026-11-27T01:07:35Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Utc(seconds).to_string(), shown, "{seconds}");
            let number = |at: std::ops::Range<usize>| shown[at].parse().unwrap();
            let midnight = Utc::of_date(number(0..4), number(5..7), number(8..10));
            assert_eq!(midnight.0, seconds / 86_400 * 86_400, "{seconds}");
            for text in [shown, &Utc(seconds).to_basic()] {
                assert_eq!(Utc::parse(text), Some(Utc(seconds)), "{text}");
            }
        }
        assert_eq!(Utc(1_795_741_655).to_the_minute(), "2026-11-27 01:07");
        assert_eq!(Utc(1_795_741_655).to_xmlrpc(), "20261127T01:07:35Z");
        assert_eq!(Utc(1_795_741_655).to_basic(), "20261127T010735Z");
        let _ = Utc(u64::MAX).to_string();
    }

    #[test]
    fn what_no_calendar_or_clock_shows_is_no_time() {
        for bad in [
            "",
            "20261127",
            "2026-11-27 01:07:35Z",
            "2026-11-27T01:07:35",
            "20261127T010735Zé",
            "99999999T999999Z",
            "20261327T010735Z",
            "20260027T010735Z",
            "20260229T010735Z",
            "20261131T010735Z",
            "20261100T010735Z",
            "20261127T240000Z",
            "20261127T016000Z",
            "20261127T010060Z",
            "19691231T235959Z",
            "100000101T000000Z",
        ] {
            assert_eq!(Utc::parse(bad), None, "{bad}");
        }
    }
}
