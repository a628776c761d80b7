//! The revisions that seeds deploy: a few histories of signed commits, made once for all seeds.
//!
//! Each history is a chain of random definitions of two services of one node: `shop`, which operators
//! deploy, and `blog`, which the agent reconciles by itself. A seed begins with a copy of a data
//! directory that holds a history's first revision.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use mcp_agent::auth::issuer::Issuer;
use mcp_agent::auth::issuers::Issuers;
use mcp_agent::config::Config;
use mcp_agent::desired::Desired;
use mcp_agent::revisions::{Limits, RevisionStore, TrustRoots};
use mcp_agent::testing::memory_dir;
use mcp_agent::trust_roots;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, NodeName};
use mcp_spec::revision::CommitId;
use tempfile::TempDir;

use super::dice::Dice;
use super::profile::Theme;

/// The one node.
pub(crate) const NODE: &str = "rift";

/// The tag of images that no registry has.
pub(crate) const NOWHERE: &str = "missing";

/// The themes of the histories: enough that no two seeds are alike, and made in a second or two.
const HISTORIES: &[Theme] = &[
    Theme::Mixed,
    Theme::Mixed,
    Theme::Mixed,
    Theme::Mixed,
    Theme::Jobs,
    Theme::Jobs,
    Theme::Auto,
    Theme::Auto,
    Theme::Ending,
];

/// Revisions of each.
const REVISIONS: usize = 10;

/// One history.
#[derive(Debug)]
pub(crate) struct History {
    theme: Theme,
    /// A data directory with the first revision.
    pub(crate) template: PathBuf,
    pub(crate) revisions: Vec<Step>,
    pub(crate) trust: TrustRoots,
}

/// One revision of it.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) commit: CommitId,
    /// What the one before lacks of it.
    pub(crate) pack: Vec<u8>,
    /// The specs that it gives to the node.
    pub(crate) specs: BTreeMap<ComponentKey, Digest>,
    /// Their images.
    pub(crate) images: BTreeMap<ComponentKey, String>,
    /// The services that are to be stopped.
    pub(crate) inactive: BTreeSet<String>,
}

/// Everything that all seeds share.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) histories: Vec<Arc<History>>,
    pub(crate) verifier: Arc<Issuers>,
    pub(crate) node: NodeName,
    _dir: TempDir,
}

impl Library {
    /// A history of a theme.
    pub(crate) fn of(&self, theme: Theme, dice: &Dice) -> Arc<History> {
        let of: Vec<&Arc<History>> = self
            .histories
            .iter()
            .filter(|history| history.theme == theme)
            .collect();
        Arc::clone(dice.pick(&of).unwrap())
    }
}

/// The histories; made at the first call.
pub(crate) fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(make)
}

/// The configuration of an agent whose data lies here.
pub(crate) fn config(data: &Path) -> Config {
    let data = data.display();
    let text = format!(
        "node = \"{NODE}\"\ndata_dir = \"{data}\"\nservices_dir = \"{data}/srv\"\n\
         [watch]\nresync = \"60s\"\n[runtime]\nengine = \"podman\"\nsocket = \"unix:///run/sim.sock\"\n"
    );
    Config::parse(Path::new(&format!("{data}/agent.toml")), &text).unwrap()
}

fn make() -> Library {
    let dir = memory_dir();
    let node: NodeName = NODE.parse().unwrap();
    run(
        dir.path(),
        "ssh-keygen",
        &[
            "-q", "-t", "ed25519", "-N", "", "-C", "owner", "-f", "owner",
        ],
    );
    let public = fs::read_to_string(dir.path().join("owner.pub")).unwrap();
    let histories = (0..)
        .zip(HISTORIES)
        .map(|(number, theme)| Arc::new(history(dir.path(), number, *theme, &public, &node)))
        .collect();
    let data = dir.path().join("issuer");
    fs::create_dir(&data).unwrap();
    let config = config(&data);
    fs::write(config.issuer_key(), Issuer::generate(&node).to_pem()).unwrap();
    Library {
        histories,
        verifier: Arc::new(Issuers::load(&config).unwrap()),
        node,
        _dir: dir,
    }
}

fn history(dir: &Path, number: u64, theme: Theme, public: &str, node: &NodeName) -> History {
    let work = dir.join(format!("work-{number}"));
    let template = dir.join(format!("data-{number}"));
    fs::create_dir_all(work.join(".mcp")).unwrap();
    fs::create_dir_all(work.join("files/shop")).unwrap();
    git(&work, &["init", "-q", "-b", "main"]);
    let line = format!("owner@example.net namespaces=\"git,mcp-owner\" {public}");
    fs::write(work.join(".mcp/allowed_signers"), line).unwrap();
    RevisionStore::init(&template).unwrap();
    fs::write(template.join("owners.pub"), public).unwrap();
    fs::write(template.join("denied_keys"), "").unwrap();
    let trust = trust_roots(&config(&template)).unwrap();
    let scratch = dir.join(format!("all-{number}"));
    RevisionStore::init(&scratch).unwrap();
    let all = Arc::new(RevisionStore::open(&scratch, trust.clone()).unwrap());
    let desired = Desired::new(node.clone(), Arc::clone(&all));
    let dice = Dice::of(number, "history");
    let mut writer = Writer::new(&dice, theme);
    let mut revisions: Vec<Step> = Vec::new();
    for revision in 0..REVISIONS {
        writer.write(&work, &dice, revision);
        git(&work, &["add", "-A"]);
        let message = format!("revision {revision}");
        git(
            &work,
            &["commit", "-q", "-S", "--allow-empty", "-m", &message],
        );
        let commit: CommitId = git(&work, &["rev-parse", "HEAD"]).trim().parse().unwrap();
        let before = revisions.last().map(|step| step.commit);
        let pack = pack(&work, before, commit);
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let limits = Limits::default();
        all.receive(&pack[..], before, commit, node, &limits, now)
            .unwrap();
        if revision == 0 {
            let store = RevisionStore::open(&template, trust.clone()).unwrap();
            store
                .receive(&pack[..], None, commit, node, &limits, now)
                .unwrap();
        }
        let set = desired.at(commit).unwrap();
        let mut step = Step {
            commit,
            pack,
            specs: BTreeMap::new(),
            images: BTreeMap::new(),
            inactive: BTreeSet::new(),
        };
        for service in set.services.values() {
            if !service.active {
                step.inactive.insert(service.name.to_string());
            }
            for (component, spec) in &service.components {
                let key = ComponentKey::new(service.name.clone(), component.clone());
                step.specs.insert(key.clone(), spec.digest());
                step.images.insert(key, spec.image.to_string());
            }
        }
        revisions.push(step);
    }
    History {
        theme,
        template,
        revisions,
        trust,
    }
}

/// Writes one definition after another, each a change of the one before.
struct Writer {
    theme: Theme,
    images: BTreeMap<&'static str, String>,
    migrates: bool,
    has_cache: bool,
    has_side: bool,
    is_active: bool,
    level: u64,
}

const GOOD: &[&str] = &["good", "good", "good", "good", "good", "slow"];
const BAD: &[&str] = &["crash", "sick", "flaky", "once", NOWHERE, "odd"];
const ENDING: &[&str] = &["flaky", "flaky", "once", "brief"];
const JOBS: &[&str] = &["done", "done", "done", "long", "fails"];

impl Writer {
    fn new(dice: &Dice, theme: Theme) -> Self {
        Self {
            theme,
            images: BTreeMap::from([
                ("db", "good1".to_owned()),
                ("api", "good1".to_owned()),
                ("web", "good1".to_owned()),
                ("migrate", "done1".to_owned()),
                ("cache", "good1".to_owned()),
                ("app", "good1".to_owned()),
                ("side", "good1".to_owned()),
            ]),
            migrates: theme == Theme::Jobs || dice.chance(500),
            has_cache: dice.chance(500),
            has_side: true,
            is_active: true,
            level: 0,
        }
    }

    fn change(&mut self, dice: &Dice, name: &'static str, revision: usize) {
        let bad = match self.theme {
            Theme::Auto => 450,
            _ => 300,
        };
        let of = match name {
            "migrate" => JOBS,
            _ if self.theme == Theme::Ending && dice.chance(600) => ENDING,
            _ if dice.chance(bad) => BAD,
            _ => GOOD,
        };
        let image = format!("{}{}", dice.pick(of).unwrap(), revision + 1);
        self.images.insert(name, image);
    }

    fn write(&mut self, work: &Path, dice: &Dice, revision: usize) {
        if revision > 0 {
            let mut names: Vec<&'static str> = self.images.keys().copied().collect();
            match self.theme {
                Theme::Mixed => {}
                Theme::Jobs => self.change(dice, "migrate", revision),
                Theme::Auto => names = vec!["app", "app", "side", "web"],
                Theme::Ending => names = vec!["app", "web", "api", "db"],
            }
            for _ in 0..=dice.below(3) {
                self.change(dice, dice.pick(&names).unwrap(), revision);
            }
            self.level = dice.below(3);
            self.migrates ^= self.theme != Theme::Jobs && dice.chance(200);
            self.has_cache ^= dice.chance(200);
            self.has_side ^= dice.chance(200);
            let idle = if self.theme == Theme::Auto { 250 } else { 100 };
            self.is_active = !dice.chance(idle);
        }
        fs::write(
            work.join("files/shop/web.conf"),
            format!("level {}\n", self.level),
        )
        .unwrap();
        fs::write(work.join("services/shop.toml"), self.shop(dice))
            .or_else(|_| {
                fs::create_dir(work.join("services"))?;
                fs::write(work.join("services/shop.toml"), self.shop(dice))
            })
            .unwrap();
        fs::write(work.join("services/blog.toml"), self.blog()).unwrap();
    }

    fn image(&self, name: &str) -> String {
        format!("image = \"localhost/{name}:{}\"\n", self.images[name])
    }

    fn shop(&self, dice: &Dice) -> String {
        let mut text = format!("name = \"shop\"\nnode = \"{NODE}\"\n");
        if dice.chance(150) {
            text += "on_failure = \"leave\"\n";
        }
        if dice.chance(300) {
            text += "deadline = \"60s\"\n";
        }
        text += "[[components]]\nname = \"db\"\nvolumes = [\"data:/data\"]\n";
        text += &self.image("db");
        if self.migrates {
            text += "[[components]]\nname = \"migrate\"\nkind = \"job\"\ndepends_on = [\"db\"]\n";
            text += &self.image("migrate");
        }
        text += "[[components]]\nname = \"api\"\nrestart = \"always\"\n";
        text += &self.image("api");
        let _ = writeln!(text, "env = {{ LEVEL = {} }}", self.level);
        text += if self.migrates {
            "depends_on = [\"db\", \"migrate\"]\n"
        } else {
            "depends_on = [\"db\"]\n"
        };
        text +=
            "[components.health]\ncmd = [\"/check\"]\ninterval = \"20s\"\nstart_period = \"8s\"\n";
        text +=
            "[[components]]\nname = \"web\"\ndepends_on = [\"api\"]\nrestart = \"on-failure:3\"\n";
        text += &self.image("web");
        let change = dice.pick(&["recreate", "restart", "signal:HUP"]).unwrap();
        let _ = writeln!(
            text,
            "files = [{{ from = \"files/shop/web.conf\", to = \"/web.conf\", on_change = \"{change}\" }}]"
        );
        if self.has_cache {
            text += "[[components]]\nname = \"cache\"\nready_for = \"1s\"\n";
            text += &self.image("cache");
        }
        text
    }

    fn blog(&self) -> String {
        let mut text = format!(
            "name = \"blog\"\nnode = \"{NODE}\"\nreconcile = \"auto\"\nactive = {}\n",
            self.is_active
        );
        text += "[[components]]\nname = \"app\"\n";
        text += &self.image("app");
        if self.has_side {
            text += "[[components]]\nname = \"side\"\ndepends_on = [\"app\"]\n";
            text += &self.image("side");
        }
        text
    }
}

fn pack(work: &Path, old: Option<CommitId>, new: CommitId) -> Vec<u8> {
    let mut revs = format!("{new}\n");
    if let Some(old) = old {
        revs += &format!("^{old}\n");
    }
    let args = [
        "pack-objects",
        "-q",
        "--stdout",
        "--revs",
        "--delta-base-offset",
    ];
    feed(work, "git", &args, &revs)
}

fn git(work: &Path, args: &[&str]) -> String {
    String::from_utf8(feed(work, "git", args, "")).unwrap()
}

fn run(dir: &Path, program: &str, args: &[&str]) {
    feed(dir, program, args, "");
}

fn feed(dir: &Path, program: &str, args: &[&str], input: &str) -> Vec<u8> {
    use std::io::Write as _;
    let home = dir.parent().unwrap();
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .env("HOME", home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_COUNT", "2")
        .env("GIT_CONFIG_KEY_0", "gpg.format")
        .env("GIT_CONFIG_VALUE_0", "ssh")
        .env("GIT_CONFIG_KEY_1", "user.signingkey")
        .env("GIT_CONFIG_VALUE_1", home.join("owner"))
        .env("GIT_AUTHOR_NAME", "Owner")
        .env("GIT_AUTHOR_EMAIL", "owner@example.net")
        .env("GIT_COMMITTER_NAME", "Owner")
        .env("GIT_COMMITTER_EMAIL", "owner@example.net")
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    output.stdout
}
