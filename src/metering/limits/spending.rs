//! What has been spent in the current calendar day and month, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth_domain::Budget;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Money and compute time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub micro_usd: u64,
    pub compute: Duration,
}

impl Spent {
    pub fn add(&mut self, other: Self) {
        self.micro_usd = self.micro_usd.saturating_add(other.micro_usd);
        self.compute = self.compute.saturating_add(other.compute);
    }

    fn at_least(&mut self, other: Self) {
        self.micro_usd = self.micro_usd.max(other.micro_usd);
        self.compute = self.compute.max(other.compute);
    }

    fn left_of(&self, budget: &Budget) -> Budget {
        Budget {
            micro_usd: budget.micro_usd.map(|limit| limit.saturating_sub(self.micro_usd)),
            compute: budget.compute.map(|limit| limit.saturating_sub(self.compute)),
        }
    }

    /// The part of a budget that is used up, in words.
    fn beyond(&self, budget: &Budget) -> Option<String> {
        if let Some(limit) = budget.micro_usd.filter(|limit| self.micro_usd >= *limit) {
            return Some(format!("{} US dollars", limit as f64 / 1e6));
        }
        let limit = budget.compute.filter(|limit| self.compute >= *limit)?;
        Some(format!("{} seconds of compute time", limit.as_secs_f64()))
    }
}

/// A budget that is used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UsedUp {
    /// `daily budget of 5 US dollars`
    pub what: String,
    /// Until the day or the month ends.
    pub wait: Duration,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Spending {
    /// Days since 1970.
    day: u64,
    today: Spent,
    /// Months since the year 0.
    month: u64,
    this_month: Spent,
}

impl Spending {
    /// Adds what was spent in the day and in the month that contain `now`.
    fn add_both(&mut self, now: SystemTime, today: Spent, this_month: Spent) {
        self.turn_over(now);
        self.today.add(today);
        self.this_month.add(this_month);
    }

    /// Takes over what the ledger of all servers says was spent in the day and the month that contain `now`, if that is more.
    pub fn at_least(&mut self, now: SystemTime, today: Spent, this_month: Spent) {
        self.turn_over(now);
        // The sums may have been read in the day before.
        if day(now) == self.day {
            self.today.at_least(today);
        }
        if month(now) == self.month {
            self.this_month.at_least(this_month);
        }
    }

    pub fn add(&mut self, now: SystemTime, spent: Spent) {
        self.add_both(now, spent, spent);
    }

    /// What is left of these budgets.
    pub fn left(&mut self, now: SystemTime, daily: &Budget, monthly: &Budget) -> (Budget, Budget) {
        self.turn_over(now);
        (self.today.left_of(daily), self.this_month.left_of(monthly))
    }

    /// Which of the two budgets is used up, if any; if both are, the one with the longer wait.
    pub fn used_up(&mut self, now: SystemTime, daily: &Budget, monthly: &Budget) -> Option<UsedUp> {
        self.turn_over(now);
        let used_up = |of: &str, budget, spent: &Spent, end: Duration| {
            let what = format!("{of} budget of {}", spent.beyond(budget)?);
            Some(UsedUp { what, wait: end.saturating_sub(since_epoch(now)) })
        };
        used_up("monthly", monthly, &self.this_month, end_of_month(self.month))
            .or_else(|| used_up("daily", daily, &self.today, DAY * (self.day as u32 + 1)))
    }

    /// Whether nothing was spent that a budget could count.
    pub fn is_empty(&mut self, now: SystemTime) -> bool {
        self.turn_over(now);
        self.this_month == Spent::default()
    }

    /// A clock that is set back does not give back what was spent.
    fn turn_over(&mut self, now: SystemTime) {
        if day(now) > self.day {
            (self.day, self.today) = (day(now), Spent::default());
        }
        if month(now) > self.month {
            (self.month, self.this_month) = (month(now), Spent::default());
        }
    }
}

/// The starts of the day and of the month that contain `now`.
pub fn beginnings(now: SystemTime) -> (SystemTime, SystemTime) {
    (UNIX_EPOCH + DAY * day(now) as u32, UNIX_EPOCH + end_of_month(month(now) - 1))
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn day(now: SystemTime) -> u64 {
    since_epoch(now).as_secs() / DAY.as_secs()
}

/// Months since the year 0 of the Gregorian calendar: the year and month of "`civil_from_days`" in Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms" (2021), for days after 1970.
fn month(now: SystemTime) -> u64 {
    // Years begin in March here, so that a leap day is the last of one; eras are of 400 years.
    let days = day(now) + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    (era * 400 + year_of_era) * 12 + month_from_march + 2
}

/// The first instant after a month, by "`days_from_civil`" of the same paper.
fn end_of_month(month: u64) -> Duration {
    let from_march = month + 1 - 2;
    let (year, month_from_march) = (from_march / 12, from_march % 12);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month_from_march + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    DAY * (era * 146_097 + day_of_era - 719_468) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Seconds after 1970, as printed by `date -u -d ... +%s`.
    const FEBRUARY_29_2028_NOON: u64 = 1_835_438_400;
    const MARCH_1_2028: u64 = 1_835_481_600;
    const DECEMBER_31_2026_LAST_SECOND: u64 = 1_798_761_599;

    #[test]
    fn months_end_where_the_calendar_says() {
        assert_eq!(month(at(0)), 1970 * 12);
        assert_eq!(month(at(FEBRUARY_29_2028_NOON)), 2028 * 12 + 1);
        assert_eq!(end_of_month(2028 * 12 + 1).as_secs(), MARCH_1_2028);
        assert_eq!(month(at(MARCH_1_2028 - 1)), 2028 * 12 + 1);
        assert_eq!(month(at(MARCH_1_2028)), 2028 * 12 + 2);
        assert_eq!(month(at(DECEMBER_31_2026_LAST_SECOND)), 2026 * 12 + 11);
        assert_eq!(end_of_month(2026 * 12 + 11).as_secs(), DECEMBER_31_2026_LAST_SECOND + 1);
        for days in 0..60_000 {
            let now = at(days * 86_400 + 7);
            let (today, this_month) = beginnings(now);
            assert!(this_month <= today && today <= now, "day {days}");
            assert_eq!(month(this_month), month(now), "day {days}");
            assert_eq!(month(this_month - Duration::from_secs(1)) + 1, month(now).max(1970 * 12 + 1), "day {days}");
        }
    }

    #[test]
    fn a_budget_is_used_up_until_its_day_or_month_is_over() {
        let noon = at(FEBRUARY_29_2028_NOON);
        let dollar = Budget { micro_usd: Some(1_000_000), compute: None };
        let minute = Budget { micro_usd: None, compute: Some(Duration::from_secs(60)) };
        let none = Budget::default();
        let mut spending = Spending::default();
        spending.add(noon, Spent { micro_usd: 999_999, compute: Duration::from_secs(60) });
        assert_eq!(spending.used_up(noon, &dollar, &dollar), None);
        let used_up = spending.used_up(noon, &minute, &none).expect("a minute is used up");
        assert_eq!(used_up.what, "daily budget of 60 seconds of compute time");
        assert_eq!(used_up.wait, Duration::from_secs(12 * 3600));
        spending.add(noon, Spent { micro_usd: 1, compute: Duration::ZERO });
        let used_up = spending.used_up(noon, &none, &dollar).expect("a dollar is used up");
        assert_eq!(used_up.what, "monthly budget of 1 US dollars");
        assert_eq!(spending.used_up(at(MARCH_1_2028), &dollar, &dollar), None, "a new day and a new month");
        assert!(spending.is_empty(at(MARCH_1_2028)));
    }

    #[test]
    fn what_was_spent_before_the_start_counts() {
        let noon = at(FEBRUARY_29_2028_NOON);
        let spent = |micro_usd| Spent { micro_usd, compute: Duration::ZERO };
        let mut spending = Spending::default();
        spending.add_both(noon, spent(3), spent(10));
        let budget = |micro_usd| Budget { micro_usd: Some(micro_usd), compute: None };
        assert!(spending.used_up(noon, &budget(4), &budget(11)).is_none());
        assert!(spending.used_up(noon, &budget(3), &budget(11)).is_some());
        assert!(spending.used_up(noon, &budget(4), &budget(10)).is_some());
        // What other servers spent counts, and nothing is counted twice.
        spending.at_least(noon, spent(2), spent(12));
        spending.at_least(at(FEBRUARY_29_2028_NOON - 86_400), spent(100), spent(12));
        assert!(spending.used_up(noon, &budget(4), &budget(13)).is_none());
        assert!(spending.used_up(noon, &budget(4), &budget(12)).is_some());
        // A clock that is set back a day changes nothing.
        assert!(spending.used_up(at(FEBRUARY_29_2028_NOON - 86_400), &budget(3), &budget(11)).is_some());
    }
}
