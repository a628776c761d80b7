//! Our verdicts on signatures against those of OpenSSH and of stock git, over generated signatures and commits.
//!
//! One rule holds everywhere: what is accepted here, they accept. Where they accept and we refuse, the reason has
//! to be one of those that stand here by name, and each of those has to be met.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use mcp_spec::revision::ParsedCommit;
use mcp_spec::signature::{
    AllowedSigners, GIT_NAMESPACE, SignatureError, SignersFault, verify_sshsig,
};
use tempfile::TempDir;

/// Signatures that `ssh-keygen -Y verify` takes and the agent refuses, and why.
const SIGNATURES: [(&str, &str); 3] = [
    (
        "algorithm",
        "RSA and ECDSA keys: one algorithm, one way to verify",
    ),
    (
        "armour",
        "text after the block, odd line breaks: one block, one text",
    ),
    ("too-large", "more than 8 KiB: a real one has 300 bytes"),
];

/// Commits that `git verify-commit` takes and the agent refuses, and why.
const COMMITS: [(&str, &str); 13] = [
    (
        "header-order",
        "a second author or a late parent: git takes the first that it meets",
    ),
    (
        "duplicate-header",
        "two of one header: two readers may take one each",
    ),
    ("duplicate-parent", "a parent twice: a merge that is none"),
    ("too-many-parents", "more than 16 parents"),
    (
        "malformed-header",
        "dates, zones, encodings and names that readers differ in",
    ),
    (
        "refused-header",
        "gpgsig-sha256, which git leaves out of what is signed",
    ),
    ("nul-in-commit", "a NUL, where some readers stop"),
    (
        "headers-do-not-end",
        "a commit without the empty line before its message",
    ),
    ("algorithm", "RSA and ECDSA keys"),
    ("armour", "text after the signature's block"),
    (
        "unknown-namespace",
        "a key of the file that may not sign revisions: git reads `*` and lists",
    ),
    ("commit-too-large", "more than 1 MiB"),
    (
        "signers",
        "an allowed_signers file with a line that is read more widely there",
    ),
];

/// Lines of `allowed_signers` under which `ssh-keygen` takes a signature and the agent refuses the file.
const LINES: [(&str, &str); 7] = [
    (
        "principal",
        "wildcards, lists and quotes: one line, one name",
    ),
    ("no-namespaces", "no namespaces=: a key for everything"),
    (
        "option",
        "valid-after, valid-before, other cases of namespaces: no date decides anything",
    ),
    ("garbled-options", "spaces, escapes and options twice"),
    (
        "namespace",
        "patterns and unknown namespaces: a misspelt limit would be none",
    ),
    ("algorithm", "RSA and ECDSA keys"),
    ("duplicate", "a key twice: which line counts?"),
];

/// Keys of all kinds, and a directory to work in.
struct Bench {
    dir: TempDir,
}

const KINDS: [(&str, &str, &str); 4] = [
    ("alice", "ed25519", "256"),
    ("mallory", "ed25519", "256"),
    ("rsa", "rsa", "2048"),
    ("ecdsa", "ecdsa", "256"),
];

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bench = Self { dir };
        for (name, kind, bits) in KINDS {
            let args = [
                "-q", "-t", kind, "-b", bits, "-N", "", "-C", name, "-f", name,
            ];
            assert!(bench.run("ssh-keygen", &args, b"").0);
        }
        bench
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn public(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path().join(format!("{name}.pub"))).unwrap();
        text.trim_end().rsplit_once(' ').unwrap().0.to_owned()
    }

    fn line(&self, name: &str, namespaces: &str) -> String {
        format!("{name} namespaces=\"{namespaces}\" {}\n", self.public(name))
    }

    /// Whether the program ended well, and what it said.
    fn run(&self, program: &str, args: &[&str], input: &[u8]) -> (bool, Vec<u8>) {
        let mut child = Command::new(program)
            .args(args)
            .current_dir(self.path())
            .env("HOME", self.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let fed = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        fed.join().unwrap();
        (output.status.success(), output.stdout)
    }

    fn sign(&self, key: &str, namespace: &str, hash: &str, message: &[u8]) -> String {
        let hash = format!("hashalg={hash}");
        let args = ["-Y", "sign", "-q", "-f", key, "-n", namespace, "-O", &hash];
        let (fine, signature) = self.run("ssh-keygen", &args, message);
        assert!(fine);
        String::from_utf8(signature).unwrap()
    }

    /// OpenSSH's verdict.
    fn theirs(&self, principal: &str, signers: &str, signature: &[u8], message: &[u8]) -> bool {
        fs::write(self.path().join("signers"), signers).unwrap();
        fs::write(self.path().join("signature"), signature).unwrap();
        let args = [
            "-Y",
            "verify",
            "-f",
            "signers",
            "-I",
            principal,
            "-n",
            "git",
            "-s",
            "signature",
        ];
        self.run("ssh-keygen", &args, message).0
    }
}

/// A fixed row of numbers: what failed once fails again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// What was met of the differences that are intended.
struct Met {
    intended: BTreeSet<&'static str>,
    met: BTreeSet<&'static str>,
    cases: usize,
    both_accept: usize,
}

impl Met {
    fn new(intended: &[(&'static str, &str)]) -> Self {
        Self {
            intended: intended.iter().map(|(name, _)| *name).collect(),
            met: BTreeSet::new(),
            cases: 0,
            both_accept: 0,
        }
    }

    fn compare(&mut self, case: &str, ours: Result<(), &'static str>, theirs: bool) {
        self.cases += 1;
        match (ours, theirs) {
            (Ok(()), true) => self.both_accept += 1,
            (Ok(()), false) => panic!("{case}: accepted here, refused there"),
            (Err(_), false) => {}
            (Err(reason), true) => {
                assert!(
                    self.intended.contains(reason),
                    "{case}: refused here alone, as {reason}"
                );
                self.met.insert(reason);
            }
        }
    }

    fn end(&self, least_cases: usize, least_accepted: usize) {
        assert_eq!(
            self.intended, self.met,
            "a difference that nobody meets is none"
        );
        let counted = (self.cases, self.both_accept);
        assert!(
            counted.0 >= least_cases && counted.1 >= least_accepted,
            "{counted:?} cases and agreements"
        );
    }
}

fn ours(
    principal: &str,
    signers: &str,
    signature: &[u8],
    message: &[u8],
) -> Result<(), &'static str> {
    let signature = std::str::from_utf8(signature).map_err(|_| "armour")?;
    let key = verify_sshsig(signature, GIT_NAMESPACE, message).map_err(|error| match error {
        SignatureError::Algorithm { .. } => "algorithm",
        SignatureError::TooLarge { .. } => "too-large",
        SignatureError::Malformed => "armour",
        SignatureError::OtherKind { .. } => "other-kind",
        SignatureError::Namespace { .. } => "namespace",
        SignatureError::NotTouched => "not-touched",
        SignatureError::Mismatch => "mismatch",
    })?;
    let signers = AllowedSigners::parse(signers).map_err(|error| fault_name(&error.fault))?;
    match signers.get(&key) {
        Some(signer) if signer.principal == principal && signer.may_sign() => Ok(()),
        Some(_) => Err("unknown-namespace"),
        None => Err("unknown-key"),
    }
}

fn fault_name(fault: &SignersFault) -> &'static str {
    use mcp_spec::signature::KeyFault;
    match fault {
        SignersFault::Key(KeyFault::Algorithm { .. }) => "algorithm",
        SignersFault::Key(KeyFault::Duplicate { .. }) => "duplicate",
        SignersFault::Key(_) => "key",
        SignersFault::NotUtf8 => "not-utf8",
        SignersFault::Principal { .. } => "principal",
        SignersFault::NoNamespaces => "no-namespaces",
        SignersFault::Option { .. } => "option",
        SignersFault::GarbledOptions => "garbled-options",
        SignersFault::Namespace { .. } => "namespace",
        SignersFault::OwnerWithoutGit | SignersFault::LimitedOwner => "owner",
    }
}

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "\n-----END SSH SIGNATURE-----";

/// The base64 between the lines, in one.
fn body(armoured: &str) -> String {
    let inner = armoured.trim_end().strip_prefix(BEGIN).unwrap();
    inner.strip_suffix(END).unwrap().replace('\n', "")
}

fn armoured(body: &str, width: usize) -> String {
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(width)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!("{BEGIN}{}{END}\n", lines.join("\n"))
}

#[test]
fn signature_that_we_accept_is_one_that_openssh_accepts() {
    let bench = Bench::new();
    let mut met = Met::new(&SIGNATURES);
    let mut numbers = Numbers(1);
    let signers: String = KINDS
        .iter()
        .map(|(name, ..)| bench.line(name, "git"))
        .collect();
    let eddsa: String = ["alice", "mallory"]
        .map(|name| bench.line(name, "git"))
        .concat();
    let mut compare = |case: &str, who: &str, signature: &[u8], message: &[u8]| {
        let ours = ours(who, &eddsa, signature, message);
        met.compare(case, ours, bench.theirs(who, &signers, signature, message));
    };
    let messages: [&[u8]; 4] = [b"", b"message\n", b"message\r\n", &[0xff, 0, 0x80, b'\n']];
    for (name, ..) in KINDS {
        for hash in ["sha256", "sha512"] {
            for namespace in ["git", "file", "mcp-request", "git2", "GIT"] {
                let signature = bench.sign(name, namespace, hash, messages[1]);
                for message in messages {
                    let case = format!("{name} {hash} {namespace} {message:?}");
                    compare(&case, name, signature.as_bytes(), message);
                }
            }
        }
    }
    let good = bench.sign("alice", "git", "sha512", messages[1]);
    compare("another principal", "mallory", good.as_bytes(), messages[1]);
    compare("no principal", "nobody", good.as_bytes(), messages[1]);
    // The armour in other forms.
    let base64 = body(&good);
    let forms = [
        good.trim_end().to_owned(),
        good.clone() + "\n\n  \n",
        good.clone() + "trailing\n",
        good.clone() + &good,
        format!("leading\n{good}"),
        format!("\n{good}"),
        format!(" {good}"),
        format!("Comment: x\n\n{good}"),
        good.replace('\n', "\r\n"),
        good.replace('\n', "\r"),
        good.replace('\n', " "),
        good.replace("SSH SIGNATURE", "SSH  SIGNATURE"),
        good.replace("SSH SIGNATURE", "PGP SIGNATURE"),
        good.to_lowercase(),
        good.replacen("BEGIN", "begin", 1),
        good.replacen(BEGIN, &format!("{BEGIN}Header: x\n\n"), 1),
        good.replacen("END", "BEGIN", 1),
        good.replacen(END, "", 1),
        good.replacen('\n', "\n\n", 3),
        good.replacen('\n', "\n\t", 3),
        good.replace('=', ""),
        good.replacen(END, &format!("={END}"), 1),
        good.replacen(END, &format!("AAAA{END}"), 1),
        armoured(&base64, 1),
        armoured(&base64, 64),
        armoured(&base64, 70),
        armoured(&base64, 76),
        armoured(&base64, 100_000),
        format!("{BEGIN}{}{END}", "\n".repeat(9000) + &base64),
        format!("{good}{}", "x".repeat(9000)),
        String::new(),
        BEGIN.to_owned(),
        format!("{BEGIN}{END}"),
    ];
    for (number, form) in forms.iter().enumerate() {
        compare(
            &format!("form {number}"),
            "alice",
            form.as_bytes(),
            messages[1],
        );
    }
    // One character changed, one bit of the armoured text, and cut short.
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";
    for _ in 0..120 {
        let mut changed = base64.clone().into_bytes();
        let at = numbers.below(changed.len());
        changed[at] = alphabet[numbers.below(alphabet.len())];
        let text = armoured(std::str::from_utf8(&changed).unwrap(), 70);
        compare(
            &format!("character {at}"),
            "alice",
            text.as_bytes(),
            messages[1],
        );
    }
    for _ in 0..60 {
        let mut changed = good.clone().into_bytes();
        let at = numbers.below(changed.len());
        changed[at] ^= 1 << numbers.below(8);
        compare(&format!("bit of {at}"), "alice", &changed, messages[1]);
    }
    for _ in 0..40 {
        let end = numbers.below(base64.len());
        let text = armoured(&base64[..end], 70);
        compare(
            &format!("cut at {end}"),
            "alice",
            text.as_bytes(),
            messages[1],
        );
    }
    // A key and its signature are made anew each time: a change may or may not be one.
    met.end(350, 5);
}

#[test]
fn line_that_we_accept_is_one_that_openssh_accepts() {
    let bench = Bench::new();
    let mut met = Met::new(&LINES);
    let message = b"message";
    let signature = bench.sign("alice", "git", "sha512", message);
    let rsa = bench.sign("rsa", "git", "sha512", message);
    let key = bench.public("alice");
    let lines = [
        format!("alice namespaces=\"git\" {key}"),
        format!("alice namespaces=\"git\" {key} a comment"),
        format!("  alice namespaces=\"git\" {key}  "),
        format!("alice\tnamespaces=\"git\"\t{key}"),
        format!("alice namespaces=\"git,mcp-owner\" {key}"),
        format!("alice namespaces=\"mcp-request,git\" {key}"),
        format!("alice namespaces=\"git,mcp-service-shop\" {key}"),
        format!("# alice\n\nalice namespaces=\"git\" {key}\n"),
        format!("alice namespaces=\"git\" {key}\r\n"),
        format!("alice namespaces=\"mcp-request\" {key}"),
        format!("alice {key}"),
        format!("alice namespaces=\"*\" {key}"),
        format!("alice namespaces=\"git*\" {key}"),
        format!("alice namespaces=\"g?t\" {key}"),
        format!("alice namespaces=\"!git,*\" {key}"),
        format!("alice namespaces=\"git,file\" {key}"),
        format!("alice namespaces=\"git, file\" {key}"),
        format!("alice namespaces=\"\" {key}"),
        format!("alice namespaces=git {key}"),
        format!("alice NAMESPACES=\"git\" {key}"),
        format!("alice namespaces=\"git\",namespaces=\"file\" {key}"),
        format!("alice namespaces=\"git\",valid-after=\"20200101\" {key}"),
        format!("alice namespaces=\"git\",valid-before=\"20200101\" {key}"),
        format!("alice cert-authority,namespaces=\"git\" {key}"),
        format!("alice namespaces=\"git\\\"\" {key}"),
        format!("alice namespaces=\"git,\\\"\" {key}"),
        format!("alice namespaces=\"git {key}"),
        format!("alice namespaces=\"git\", {key}"),
        format!("alice unknown,namespaces=\"git\" {key}"),
        format!("* namespaces=\"git\" {key}"),
        format!("a*,!bob namespaces=\"git\" {key}"),
        format!("alice,bob namespaces=\"git\" {key}"),
        format!("\"alice\" namespaces=\"git\" {key}"),
        format!("!alice namespaces=\"git\" {key}"),
        format!("bob namespaces=\"git\" {key}"),
        format!("alice namespaces=\"git\" {key}\nalice namespaces=\"mcp-request\" {key}"),
        format!("alice namespaces=\"mcp-request\" {key}\nalice namespaces=\"git\" {key}"),
        format!("alice namespaces=\"git\" {}", bench.public("mallory")),
        format!("alice namespaces=\"git\" {}", &key[..key.len() - 8]),
        format!("alice namespaces=\"git\" {key}AAAA"),
        String::new(),
        "alice".to_owned(),
    ];
    for line in &lines {
        let ours = ours("alice", line, signature.as_bytes(), message);
        let theirs = bench.theirs("alice", line, signature.as_bytes(), message);
        met.compare(line, ours, theirs);
    }
    let line = bench.line("rsa", "git");
    let refused = AllowedSigners::parse(&line).unwrap_err();
    let theirs = bench.theirs("rsa", &line, rsa.as_bytes(), message);
    met.compare(&line, Err(fault_name(&refused.fault)), theirs);
    met.end(lines.len(), 7);
}

/// A commit in parts, each of which may be another.
#[derive(Clone)]
struct Parts {
    before: Vec<String>,
    after: Vec<String>,
    message: Vec<u8>,
    /// Headers that git leaves out of what is signed.
    unsigned: String,
    key: &'static str,
    namespace: &'static str,
    changed: bool,
}

impl Parts {
    fn new() -> Self {
        let person = "Alice <alice@example.net> 1700000000 +0100";
        Self {
            before: vec![
                "tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904".to_owned(),
                format!("author {person}"),
                format!("committer {person}"),
            ],
            after: Vec::new(),
            message: b"\nmessage\n".to_vec(),
            unsigned: String::new(),
            key: "alice",
            namespace: "git",
            changed: false,
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut parts = self.clone();
        change(&mut parts);
        parts
    }

    /// The raw object, signed.
    fn signed(&self, bench: &Bench) -> Vec<u8> {
        let lines = |lines: &[String]| {
            lines
                .iter()
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        let (before, after) = (lines(&self.before), lines(&self.after));
        let payload = [before.as_bytes(), after.as_bytes(), &self.message].concat();
        let pem = bench.sign(self.key, self.namespace, "sha512", &payload);
        let header = format!("gpgsig {}\n", pem.trim_end().replace('\n', "\n "));
        let mut message = self.message.clone();
        if self.changed {
            message.extend(b"!");
        }
        [
            before.as_bytes(),
            header.as_bytes(),
            self.unsigned.as_bytes(),
            after.as_bytes(),
            &message,
        ]
        .concat()
    }
}

fn judged(raw: &[u8], signers: &str) -> Result<(), &'static str> {
    let parsed = ParsedCommit::parse(raw).map_err(|error| error.name())?;
    let pem = parsed.signature.ok_or("unsigned")?;
    // Git looks for the principal by the key.
    let known = AllowedSigners::parse(signers).map_err(|_| "signers")?;
    let key = verify_sshsig(&pem, GIT_NAMESPACE, &parsed.payload);
    let principal = key
        .ok()
        .and_then(|key| known.get(&key).map(|signer| signer.principal.clone()))
        .unwrap_or_default();
    ours(&principal, signers, pem.as_bytes(), &parsed.payload)
}

#[test]
fn commit_that_we_accept_is_one_that_git_accepts() {
    let bench = Bench::new();
    assert!(bench.run("git", &["init", "-q", "work"], b"").0);
    let mut met = Met::new(&COMMITS);
    let strict = bench.line("alice", "git") + &bench.line("mallory", "mcp-request");
    let wide = KINDS.map(|(name, ..)| bench.line(name, "git")).concat();
    let mut compare = |case: &str, raw: &[u8], ours: &str, theirs: &str| {
        fs::write(bench.path().join("theirs"), theirs).unwrap();
        let args = [
            "-C",
            "work",
            "hash-object",
            "-t",
            "commit",
            "-w",
            "--stdin",
            "--literally",
        ];
        let (fine, id) = bench.run("git", &args, raw);
        assert!(fine, "{case}");
        let id = String::from_utf8(id).unwrap();
        let signers = format!(
            "gpg.ssh.allowedSignersFile={}",
            bench.path().join("theirs").display()
        );
        let verify = [
            "-C",
            "work",
            "-c",
            "gpg.format=ssh",
            "-c",
            &signers,
            "verify-commit",
            id.trim(),
        ];
        met.compare(case, judged(raw, ours), bench.run("git", &verify, b"").0);
    };
    let plain = Parts::new();
    let parent = "parent 1111111111111111111111111111111111111111";
    let shapes: Vec<(&str, Parts)> = vec![
        ("plain", plain.clone()),
        ("changed", plain.with(|parts| parts.changed = true)),
        ("mallory", plain.with(|parts| parts.key = "mallory")),
        ("rsa", plain.with(|parts| parts.key = "rsa")),
        ("ecdsa", plain.with(|parts| parts.key = "ecdsa")),
        ("namespace", plain.with(|parts| parts.namespace = "file")),
        (
            "request",
            plain.with(|parts| parts.namespace = "mcp-request"),
        ),
        (
            "parent",
            plain.with(|parts| parts.before.insert(1, parent.to_owned())),
        ),
        (
            "parent twice",
            plain.with(|parts| {
                parts.before.insert(1, parent.to_owned());
                parts.before.insert(1, parent.to_owned());
            }),
        ),
        (
            "many parents",
            plain.with(|parts| {
                for number in 0..17 {
                    parts.before.insert(1, format!("parent {number:040x}"));
                }
            }),
        ),
        (
            "late parent",
            plain.with(|parts| parts.before.push(parent.to_owned())),
        ),
        (
            "two authors",
            plain.with(|parts| {
                let author = parts.before[1].clone();
                parts.before.insert(1, author);
            }),
        ),
        ("no author", plain.with(|parts| _ = parts.before.remove(1))),
        (
            "header",
            plain.with(|parts| parts.after.push("change-id abc".to_owned())),
        ),
        (
            "folded header",
            plain.with(|parts| {
                parts
                    .after
                    .push("mergetag object x\n type commit".to_owned())
            }),
        ),
        (
            "header twice",
            plain.with(|parts| parts.after = vec!["x 1".to_owned(), "x 2".to_owned()]),
        ),
        (
            "utf-8",
            plain.with(|parts| parts.after.push("encoding UTF-8".to_owned())),
        ),
        (
            "latin1",
            plain.with(|parts| parts.after.push("encoding latin1".to_owned())),
        ),
        (
            "other hash",
            plain.with(|parts| parts.unsigned = "gpgsig-sha256 x\n y\n".to_owned()),
        ),
        (
            "nul",
            plain.with(|parts| parts.message = b"\na\0b\n".to_vec()),
        ),
        (
            "not utf-8",
            plain.with(|parts| parts.message = b"\ncaf\xe9\n".to_vec()),
        ),
        (
            "empty message",
            plain.with(|parts| parts.message = b"\n".to_vec()),
        ),
        ("no end", plain.with(|parts| parts.message = Vec::new())),
        (
            "no newline",
            plain.with(|parts| parts.message = b"\nmessage".to_vec()),
        ),
        (
            "crlf",
            plain.with(|parts| parts.message = b"\nmessage\r\n".to_vec()),
        ),
        (
            "large",
            plain.with(|parts| parts.message = [b"\n", vec![b'x'; 1 << 20].as_slice()].concat()),
        ),
        (
            "pem in message",
            plain.with(|parts| parts.message = format!("\ngpgsig {BEGIN} x{END}\n").into_bytes()),
        ),
    ];
    for (case, parts) in &shapes {
        compare(case, &parts.signed(&bench), &strict, &wide);
        compare(case, &parts.signed(&bench), &strict, &strict);
    }
    for date in [
        "0 +0000",
        "1 -1200",
        "253402300799 +1400",
        "253402300800 +0000",
        "9223372036854775808 +0000",
        "-1 +0000",
        "007 +0000",
        "1 +9900",
        "1 +0060",
        "1",
        "",
        "1 +0000 ",
    ] {
        for line in [1, 2] {
            let odd = plain.with(|parts| {
                let at = parts.before[line].find('>').unwrap();
                parts.before[line].replace_range(at + 1.., &format!(" {date}"));
            });
            compare(date, &odd.signed(&bench), &strict, &strict);
        }
    }
    let good = plain.signed(&bench);
    let text = String::from_utf8(good.clone()).unwrap();
    let at = text.find("gpgsig ").unwrap();
    let end = text.find(END.trim_start()).unwrap() + END.len();
    let signature = &text[at..end];
    for (case, odd) in [
        (
            "signature first",
            format!("{signature}{}", text.replacen(signature, "", 1)),
        ),
        (
            "signature twice",
            text.replacen(signature, &signature.repeat(2), 1),
        ),
        (
            "signature last",
            text.replacen(signature, "", 1)
                .replacen("\n\n", &format!("\n{signature}\n"), 1),
        ),
        ("none", text.replacen(signature, "", 1)),
        ("no value", text.replacen("gpgsig -", "gpgsig\n -", 1)),
        (
            "no value but a blank",
            text.replacen("gpgsig -", "gpgsig \n -", 1),
        ),
        ("text before", text.replacen("gpgsig -", "gpgsig x\n -", 1)),
        (
            "text after",
            text.replacen(END.trim_start(), &format!("{}\n x", END.trim_start()), 1),
        ),
        ("two blanks", text.replacen("gpgsig -", "gpgsig  -", 1)),
        ("upper case", text.replacen("gpgsig -", "GPGSIG -", 1)),
        ("carriage return", text.replacen("gpgsig", "gpgsig\r", 1)),
        ("header within", text.replacen(" U1NI", "x y\n U1NI", 1)),
    ] {
        compare(case, odd.as_bytes(), &strict, &strict);
    }
    let dated = strict.replace(
        "namespaces=\"git\"",
        "namespaces=\"git\",valid-after=\"20200101\"",
    );
    compare("a dated key", &good, &dated, &dated);
    // Anything at all.
    let mut numbers = Numbers(2);
    for _ in 0..120 {
        let mut odd = good.clone();
        let at = numbers.below(odd.len());
        match numbers.below(3) {
            0 => odd[at] ^= 1 << numbers.below(8),
            1 => _ = odd.remove(at),
            _ => {
                let copied = odd[at];
                odd.insert(at, copied);
            }
        }
        compare(&format!("byte {at}"), &odd, &strict, &strict);
    }
    met.end(200, 20);
}
