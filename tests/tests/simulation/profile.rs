//! What kind of world a seed is: each makes other rare moments frequent, so that a few hundred seeds come by
//! all of them.

use super::dice::Dice;

/// What can happen in a world, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Deploy,
    Push,
    Lifecycle,
    Rollback,
    Hold,
    /// An operator holds or stops what the agent is about to change by itself.
    Overrule,
    Cancel,
    Purge,
    /// A client that heard no answer asks again, by the same request id.
    AskAgain,
    /// The agent is killed some steps from now.
    KillSoon,
    /// It is killed in the midst of what deployments do and write.
    KillInDeployment,
    Kill,
    /// It is told to end.
    End,
    /// The power fails now, or in the midst of what is made to last.
    PowerFails,
    PowerFailsSoon,
    EngineGoesAway,
    EngineLosesAll,
    /// The agent is killed, and finds its registry gone.
    RegistryLost,
    ForeignHand,
    /// Somebody undoes each repair of a component that the agent cares for by itself.
    Contest,
    /// An operator has the agent take over a container, or let go of a component.
    Adopt,
    Forget,
    /// A stranger's container that bears a copy of the agent's labels, but for the node.
    Forgery,
    ClockJumps,
    DiskFull,
    ClientsGo,
}

/// What the revisions of a seed are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Theme {
    Mixed,
    /// Each deploy of the shop runs a job.
    Jobs,
    /// Every revision changes what the agent deploys by itself, often to something bad.
    Auto,
    /// What runs ends again and again.
    Ending,
}

/// One kind of world.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) name: &'static str,
    pub(crate) theme: Theme,
    acts: &'static [(Act, u64)],
    /// Faults in a thousand calls of the engine: one of these.
    pub(crate) faults: &'static [u64],
    /// Longest pauses between two acts, in milliseconds: one of these each time.
    pub(crate) pauses: &'static [u64],
    /// How often in a thousand an agent that begins again is killed while it recovers.
    pub(crate) recovery: u64,
    /// How often in a thousand it is the automatic service that an operator names.
    pub(crate) auto: u64,
}

use Act as A;

const PROFILES: &[Profile] = &[
    Profile {
        name: "mixed",
        theme: Theme::Mixed,
        acts: &[
            (A::Deploy, 25),
            (A::Push, 9),
            (A::Lifecycle, 5),
            (A::Rollback, 4),
            (A::Hold, 4),
            (A::Overrule, 2),
            (A::Cancel, 3),
            (A::Purge, 2),
            (A::AskAgain, 2),
            (A::KillSoon, 10),
            (A::KillInDeployment, 8),
            (A::Kill, 2),
            (A::End, 2),
            (A::PowerFails, 2),
            (A::PowerFailsSoon, 2),
            (A::EngineGoesAway, 5),
            (A::EngineLosesAll, 1),
            (A::ForeignHand, 9),
            (A::Forgery, 2),
            (A::ClockJumps, 3),
            (A::DiskFull, 2),
            (A::ClientsGo, 3),
            (A::Contest, 1),
            (A::Adopt, 2),
            (A::Forget, 2),
        ],
        faults: &[0, 5, 15, 40, 100],
        pauses: &[5, 60, 900, 4000, 30_000, 120_000],
        recovery: 150,
        auto: 333,
    },
    Profile {
        name: "crashes",
        theme: Theme::Mixed,
        acts: &[
            (A::Deploy, 34),
            (A::Push, 14),
            (A::Lifecycle, 8),
            (A::Rollback, 6),
            (A::KillInDeployment, 38),
            (A::Forgery, 3),
        ],
        faults: &[0, 0, 10, 40],
        pauses: &[5, 500, 4000, 12_000],
        recovery: 400,
        auto: 250,
    },
    Profile {
        name: "jobs",
        theme: Theme::Jobs,
        acts: &[
            (A::Deploy, 34),
            (A::Push, 16),
            (A::Lifecycle, 5),
            (A::Rollback, 8),
            (A::KillInDeployment, 24),
            (A::KillSoon, 6),
            (A::EngineGoesAway, 4),
            (A::AskAgain, 3),
        ],
        faults: &[0, 10, 40, 100],
        pauses: &[500, 4000, 12_000, 20_000],
        recovery: 250,
        auto: 0,
    },
    Profile {
        name: "operators",
        theme: Theme::Mixed,
        acts: &[
            (A::Deploy, 26),
            (A::Push, 9),
            (A::Lifecycle, 22),
            (A::Rollback, 9),
            (A::Hold, 12),
            (A::Cancel, 9),
            (A::Purge, 2),
            (A::AskAgain, 8),
            (A::ClientsGo, 3),
            (A::KillInDeployment, 5),
            (A::Adopt, 14),
            (A::Forget, 9),
            (A::DiskFull, 6),
        ],
        faults: &[0, 0, 10],
        pauses: &[5, 5, 60, 900, 4000, 20_000],
        recovery: 100,
        auto: 400,
    },
    Profile {
        name: "auto",
        theme: Theme::Auto,
        acts: &[
            (A::Push, 30),
            (A::Deploy, 8),
            (A::Lifecycle, 12),
            (A::Hold, 10),
            (A::Overrule, 14),
            (A::Rollback, 4),
            (A::ForeignHand, 16),
            (A::KillInDeployment, 8),
            (A::EngineGoesAway, 3),
            (A::Cancel, 2),
            (A::Contest, 12),
        ],
        faults: &[0, 0, 10, 40],
        pauses: &[500, 2500, 4000, 30_000],
        recovery: 100,
        auto: 850,
    },
    Profile {
        name: "engine",
        theme: Theme::Mixed,
        acts: &[
            (A::Deploy, 32),
            (A::Push, 12),
            (A::Lifecycle, 8),
            (A::Rollback, 4),
            (A::EngineGoesAway, 24),
            (A::EngineLosesAll, 4),
            (A::ForeignHand, 8),
            (A::KillInDeployment, 6),
        ],
        faults: &[40, 100, 200, 300],
        pauses: &[60, 900, 4000, 30_000],
        recovery: 100,
        auto: 333,
    },
    Profile {
        name: "power",
        theme: Theme::Mixed,
        acts: &[
            (A::Push, 30),
            (A::Deploy, 30),
            (A::Lifecycle, 4),
            (A::Rollback, 6),
            (A::PowerFails, 8),
            (A::PowerFailsSoon, 22),
            (A::KillInDeployment, 4),
        ],
        faults: &[0, 0, 20],
        pauses: &[5, 900, 4000, 12_000],
        recovery: 150,
        auto: 200,
    },
    Profile {
        name: "ending",
        theme: Theme::Ending,
        acts: &[
            (A::Deploy, 26),
            (A::Push, 12),
            (A::Lifecycle, 26),
            (A::ForeignHand, 24),
            (A::KillInDeployment, 4),
            (A::Kill, 4),
            (A::EngineGoesAway, 3),
            (A::Adopt, 4),
            (A::Forget, 3),
        ],
        faults: &[0, 10, 60],
        pauses: &[60, 900, 4000, 30_000],
        recovery: 100,
        auto: 250,
    },
    Profile {
        name: "loss",
        theme: Theme::Mixed,
        acts: &[
            (A::Deploy, 30),
            (A::Push, 12),
            (A::Lifecycle, 8),
            (A::Rollback, 3),
            (A::Hold, 5),
            (A::RegistryLost, 16),
            (A::EngineLosesAll, 6),
            (A::EngineGoesAway, 4),
            (A::ForeignHand, 7),
            (A::Adopt, 8),
            (A::Forget, 8),
            (A::Forgery, 4),
            (A::KillInDeployment, 4),
        ],
        faults: &[0, 0, 10],
        pauses: &[900, 4000, 12_000, 30_000],
        recovery: 100,
        auto: 333,
    },
];

impl Profile {
    /// The profile of a seed: each comes in its turn.
    pub(crate) fn of(seed: u64) -> &'static Self {
        let count = u64::try_from(PROFILES.len()).unwrap();
        &PROFILES[usize::try_from(seed % count).unwrap()]
    }

    /// What happens next.
    pub(crate) fn act(&self, dice: &Dice) -> Act {
        let all: u64 = self.acts.iter().map(|(_, weight)| weight).sum();
        let mut left = dice.below(all);
        for (act, weight) in self.acts {
            if left < *weight {
                return *act;
            }
            left -= weight;
        }
        unreachable!("the weights add up")
    }
}
