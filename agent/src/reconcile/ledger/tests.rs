//! What follows from failures and repairs.

use mcp_spec::definition::{DefinitionFile, compile};

use super::*;

const BOUNDS: Bounds = Bounds {
    threshold: 3,
    window: Duration::from_secs(300),
    calm: Duration::from_secs(300),
};

const TEN_YEARS: i64 = 10 * 365 * 86_400;

/// A ledger with clocks of its own.
struct Bench {
    ledger: Ledger,
    head: DesiredSet,
    begin: Instant,
    seconds: u64,
    /// What the wall clock is off by.
    skew: i64,
    pauses: BTreeMap<ServiceName, PauseRow>,
    repairs: BTreeMap<ComponentKey, RepairsRow>,
    reach: Reach,
    told: Vec<String>,
}

fn shop() -> ServiceName {
    "shop".parse().unwrap()
}

fn web() -> ComponentName {
    "web".parse().unwrap()
}

fn head(reconcile: &str, tag: &str) -> DesiredSet {
    let text = format!(
        "name = \"shop\"\nnode = \"rift\"\nreconcile = \"{reconcile}\"\n\
         [[components]]\nname = \"web\"\nimage = \"localhost/web:{tag}\"\n\
         [[components]]\nname = \"api\"\nimage = \"localhost/api:v1\"\n"
    );
    let file = DefinitionFile {
        path: "services/shop.toml",
        bytes: text.as_bytes(),
    };
    compile(&[file], &|_: &str| None::<Digest>).unwrap()
}

impl Bench {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(BOUNDS),
            head: head("auto", "v1"),
            // The monotonic clock has to be able to go back.
            begin: Instant::now() + Duration::from_secs(86_400),
            seconds: 0,
            skew: 0,
            pauses: BTreeMap::new(),
            repairs: BTreeMap::new(),
            reach: Reach::Crossed,
            told: Vec::new(),
        }
    }

    fn moment(&self) -> Moment {
        let seconds = 1_800_000_000 + i64::try_from(self.seconds).unwrap() + self.skew;
        Moment {
            now: self.begin + Duration::from_secs(self.seconds),
            at: Timestamp::from_second(seconds).unwrap(),
        }
    }

    /// Writes down as the registry does.
    fn record(&mut self, changes: Reconciled) {
        for service in changes.no_pauses {
            self.pauses.remove(&service);
        }
        for row in changes.pauses {
            self.pauses.insert(row.service.clone(), row);
        }
        for key in changes.no_repairs {
            self.repairs.remove(&key);
        }
        for row in changes.repairs {
            self.repairs.insert(row.key.clone(), row);
        }
        let words = changes.events.into_iter();
        self.told
            .extend(words.map(|event| format!("{} {}", event.kind, event.reason)));
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.seconds += seconds;
        self
    }

    /// The agent is started again; its wall clock may have been set meanwhile.
    fn restarts(&mut self, seconds_later: u64, skew: i64) {
        self.seconds += seconds_later;
        self.skew += skew;
        self.ledger = Ledger::new(BOUNDS);
        self.looks();
    }

    /// A round in which nothing is broken.
    fn looks(&mut self) {
        let moment = self.moment();
        let pauses = self.pauses.values().cloned().collect();
        let repairs = self.repairs.values().cloned().collect();
        self.ledger.take_in(pauses, repairs, moment);
        let changes = self.ledger.follow(&self.head, moment);
        self.record(changes);
        let changes = self.ledger.pass(moment);
        self.record(changes);
    }

    fn tries(&mut self, failure: Option<&str>, repairs: &[&str]) {
        let wanted_of = |component: &ComponentName| {
            let service = &self.head.services[&shop()];
            service.components[component].digest()
        };
        let attempt = Attempt {
            failure: failure.map(ToOwned::to_owned),
            reach: self.reach,
            repairs: repairs
                .iter()
                .map(|cause| Repair {
                    component: web(),
                    wanted: wanted_of(&web()),
                    cause: (*cause).to_owned(),
                })
                .collect(),
            ..Attempt::default()
        };
        let wanted = wanted(&self.head.services[&shop()]);
        let moment = self.moment();
        let changes = self.ledger.ended(&shop(), wanted, attempt, moment);
        self.record(changes);
    }

    fn repairs(&mut self, cause: &str) {
        self.tries(None, &[cause]);
    }

    /// Seconds until the service may be tried.
    fn service_waits(&self) -> u64 {
        self.waits(|at| self.ledger.may_try(&shop(), at))
    }

    /// Seconds until the component may be repaired.
    fn component_waits(&self) -> u64 {
        self.waits(|at| self.ledger.waiting(&shop(), at).is_empty())
    }

    fn waits(&self, may: impl Fn(Instant) -> bool) -> u64 {
        let now = self.moment().now;
        (0..100_000)
            .find(|seconds| may(now + Duration::from_secs(*seconds)))
            .unwrap()
    }
}

#[test]
fn pauses_double_to_five_minutes_and_stay_there() {
    let mut bench = Bench::new();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        bench.tries(Some("no such image"), &[]);
        pauses.push(bench.service_waits());
        bench.after(pauses[pauses.len() - 1]);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn a_pause_outlives_the_agent_and_what_passed_meanwhile_counts() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.tries(Some("no such image"), &[]);
    }
    bench.restarts(30, 0);
    assert_eq!(bench.service_waits(), 50);
    bench.restarts(1000, 0);
    assert_eq!(bench.service_waits(), 0);
    bench.tries(Some("no such image"), &[]);
    assert_eq!(bench.service_waits(), 160, "the series goes on");
}

#[test]
fn a_clock_that_was_set_by_ten_years_makes_no_pause_longer_and_ends_no_series() {
    for skew in [TEN_YEARS, -TEN_YEARS] {
        let mut bench = Bench::new();
        for _ in 0..6 {
            bench.tries(Some("no such image"), &["container missing"]);
        }
        bench.restarts(1, skew);
        assert!(bench.service_waits() <= 300);
        assert!(bench.component_waits() <= 300);
        bench.after(300);
        assert_eq!((bench.service_waits(), bench.component_waits()), (0, 0));
        bench.tries(Some("no such image"), &[]);
        assert_eq!(bench.service_waits(), 300);
        // While it runs the wall clock does not count at all.
        bench.skew -= skew;
        assert_eq!(bench.service_waits(), 300);
        bench.looks();
        assert_eq!(bench.service_waits(), 300);
    }
}

#[test]
fn a_success_ends_the_waiting_and_the_series_once_it_has_lasted() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.tries(Some("no such image"), &[]);
    }
    bench.after(40).tries(None, &[]);
    assert_eq!(bench.service_waits(), 0);
    bench.after(100).looks();
    bench.tries(Some("no such image"), &[]);
    assert_eq!(bench.service_waits(), 80, "it did not last");
    bench.after(80).tries(None, &[]);
    bench.after(300).looks();
    assert!(bench.pauses.is_empty());
    bench.tries(Some("no such image"), &[]);
    assert_eq!(bench.service_waits(), 10);
}

#[test]
fn another_head_of_the_service_begins_anew() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.tries(Some("no such image"), &["container missing"]);
    }
    bench.head = head("auto", "v2");
    bench.looks();
    assert_eq!((bench.service_waits(), bench.component_waits()), (0, 0));
    assert!(bench.pauses.is_empty() && bench.repairs.is_empty());
    assert_eq!(
        bench.told,
        [
            "contested container missing",
            "blocked-over not-wanted",
            "contested-over new-revision"
        ]
    );
}

#[test]
fn a_service_that_is_not_automatic_any_more_is_let_go() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.repairs("container missing");
    }
    bench.head = head("manual", "v1");
    bench.looks();
    assert!(bench.repairs.is_empty() && bench.ledger.is_empty());
    assert_eq!(bench.told.last().unwrap(), "contested-over not-automatic");
}

#[test]
fn the_third_repair_in_the_window_is_a_contest_and_told_once() {
    let mut bench = Bench::new();
    bench.repairs("container missing");
    bench.after(60).repairs("container missing");
    assert_eq!(bench.component_waits(), 0);
    assert!(bench.told.is_empty());
    let mut pauses = Vec::new();
    for _ in 0..8 {
        bench.after(1).repairs("container missing");
        pauses.push(bench.component_waits());
        bench.after(pauses[pauses.len() - 1]);
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(bench.told, ["contested container missing"]);
    bench.repairs("memory drifted");
    assert_eq!(bench.told.last().unwrap(), "contested memory drifted");
    assert_eq!(bench.service_waits(), 0, "its neighbours are not waiting");
}

#[test]
fn repairs_far_apart_are_no_contest() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.after(151).repairs("container missing");
        bench.looks();
        assert_eq!(bench.component_waits(), 0);
    }
    assert!(bench.told.is_empty());
    bench.after(300).looks();
    assert!(bench.repairs.is_empty(), "and they are forgotten");
}

#[test]
fn a_contest_is_over_once_it_was_seen_calm_for_the_window() {
    let mut bench = Bench::new();
    for _ in 0..4 {
        bench.repairs("container missing");
    }
    // Broken, and waiting for its pause: that is not calm.
    for _ in 0..40 {
        bench.after(10);
        let now = bench.moment().now;
        bench.ledger.needs(&shop(), &[web()], now);
        bench.looks();
    }
    assert_eq!(bench.told.len(), 1);
    bench.repairs("container missing");
    bench.after(299).looks();
    assert_eq!(bench.told.len(), 1);
    bench.after(1).looks();
    assert_eq!(bench.told.last().unwrap(), "contested-over left-alone");
    assert!(bench.repairs.is_empty());
    bench.after(1000).looks();
    assert_eq!(bench.told.len(), 2);
}

#[test]
fn a_contest_outlives_the_agent_and_ends_once() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.repairs("container missing");
    }
    assert_eq!(bench.component_waits(), 40);
    bench.restarts(15, 0);
    assert_eq!(bench.component_waits(), 25);
    bench.after(25).repairs("container missing");
    assert_eq!(bench.component_waits(), 80);
    assert_eq!(bench.told.len(), 1, "it has begun already");
    // Nobody looked meanwhile, so nobody has seen it calm.
    bench.restarts(10_000, 0);
    assert_eq!(bench.told.len(), 1);
    bench.after(300).looks();
    assert_eq!(bench.told.last().unwrap(), "contested-over left-alone");
    bench.restarts(1, 0);
    bench.after(1000).looks();
    assert_eq!(bench.told.len(), 2);
}

#[test]
fn what_an_operator_took_in_hand_begins_anew() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.tries(Some("no such image"), &["container missing"]);
    }
    bench.pauses.clear();
    bench.repairs.clear();
    bench.looks();
    assert_eq!((bench.service_waits(), bench.component_waits()), (0, 0));
}

#[test]
fn repairs_in_an_hour_are_few_whatever_somebody_does() {
    let mut bench = Bench::new();
    let mut repairs = 0;
    while bench.seconds < 3600 {
        bench.after(2).repairs("container missing");
        repairs += 1;
        let pause = bench.component_waits();
        bench.after(pause);
        // Changed back at once, as each round sees.
        let now = bench.moment().now;
        bench.ledger.needs(&shop(), &[web()], now);
        bench.looks();
    }
    assert!(repairs <= 20, "{repairs}");
    assert!(bench.repairs.values().all(|row| row.times.len() <= 3));
}

#[test]
fn the_bounds_follow_those_of_flapping_within_reason() {
    let day = Duration::from_secs(86_400);
    for (threshold, repairs) in [(0, 3), (1, 1), (3, 3), (1000, 10)] {
        assert_eq!(Bounds::of(threshold, day).threshold, repairs);
    }
    let short = Bounds::of(3, Duration::from_secs(5));
    assert_eq!(short.window, SHORTEST_WINDOW);
    assert_eq!(short.calm, Duration::from_secs(5));
}

#[test]
fn it_wakes_when_a_pause_or_a_contest_is_over() {
    let mut bench = Bench::new();
    assert_eq!(bench.ledger.next(bench.moment().now), None);
    let in_seconds = |bench: &Bench| {
        let now = bench.moment().now;
        bench.ledger.next(now).map(|at| (at - now).as_secs())
    };
    bench.tries(Some("no such image"), &[]);
    assert_eq!(in_seconds(&bench), Some(10));
    bench.after(10).looks();
    assert_eq!(in_seconds(&bench), None);
    bench.tries(None, &[]);
    assert_eq!(in_seconds(&bench), Some(300));
    for _ in 0..3 {
        bench.repairs("container missing");
    }
    assert_eq!(in_seconds(&bench), Some(10));
    bench.after(10);
    assert_eq!(in_seconds(&bench), Some(290));
}

/// As long as each pause lasts, so many attempts that fail like this; when what was told, by attempt.
fn told_by_attempt(bench: &mut Bench, causes: &[&str]) -> Vec<usize> {
    let mut told = Vec::new();
    for (number, cause) in causes.iter().enumerate() {
        let before = bench.told.len();
        bench.tries(Some(cause), &[]);
        told.extend(std::iter::repeat_n(number + 1, bench.told.len() - before));
        let pause = bench.service_waits();
        bench.after(pause);
    }
    told
}

#[test]
fn what_blocks_a_service_is_told_at_once_and_when_it_persists() {
    let taken = "blocked: the name shop-web is taken";
    let mut bench = Bench::new();
    bench.reach = Reach::Nothing;
    assert_eq!(told_by_attempt(&mut bench, &[taken; 6]), [1, 3]);
    assert_eq!(bench.told[1], "blocked the name shop-web is taken");
    let other = "blocked: port 80 is taken";
    assert_eq!(
        told_by_attempt(&mut bench, &[other; 3]),
        [1],
        "another cause"
    );
    bench.restarts(1, 0);
    assert_eq!(
        told_by_attempt(&mut bench, &[other; 3]),
        Vec::<usize>::new(),
        "told before the restart"
    );
}

#[test]
fn deployments_that_are_aborted_again_and_again_are_told_once_to_persist() {
    let mut bench = Bench::new();
    bench.reach = Reach::Aborted;
    let causes = [
        "no such image",
        "no such image",
        "no answer",
        "no such image",
    ];
    assert_eq!(told_by_attempt(&mut bench, &causes), [3]);
    bench.reach = Reach::Crossed;
    let mut bench = Bench::new();
    assert_eq!(
        told_by_attempt(&mut bench, &["it exited"; 5]),
        Vec::<usize>::new(),
        "told as deployments are"
    );
}

#[test]
fn what_blocked_a_service_is_over_when_nothing_is_left_to_do() {
    let taken = "blocked: the name shop-web is taken";
    let mut bench = Bench::new();
    bench.reach = Reach::Nothing;
    told_by_attempt(&mut bench, &[taken; 3]);
    let moment = bench.moment();
    let changes = bench.ledger.has_nothing_to_do(&shop(), moment);
    bench.record(changes);
    assert_eq!(bench.told.last().unwrap(), "blocked-over nothing-to-do");
    assert!(bench.pauses.is_empty() && bench.ledger.is_empty());
    // What a deployment failed with is no such thing: its series goes on.
    bench.tries(Some("no such image"), &[]);
    let moment = bench.moment();
    assert!(bench.ledger.has_nothing_to_do(&shop(), moment).is_empty());
}

#[test]
fn what_blocked_a_service_and_comes_back_is_told_again() {
    let taken = "blocked: the name shop-web is taken";
    let mut bench = Bench::new();
    bench.reach = Reach::Nothing;
    told_by_attempt(&mut bench, &[taken; 4]);
    bench.tries(None, &[]);
    assert_eq!(told_by_attempt(&mut bench, &[taken; 2]), [1]);
}
