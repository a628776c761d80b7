//! `mcp` as a person has it: on a terminal, which util-linux's `script` makes, with questions that are
//! answered.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{LocalModes, tcgetattr};

use crate::binaries::binaries;
use crate::fleet::Fleet;

/// How long a person waits.
const PATIENCE: Duration = Duration::from_secs(120);

/// A terminal of 100 columns on which `mcp` runs.
#[derive(Debug)]
pub struct Terminal {
    script: Child,
    keys: ChildStdin,
    screen: Arc<Mutex<String>>,
    /// How far of the screen has been waited for.
    seen: usize,
}

impl Fleet {
    /// Starts `mcp` on a terminal of its own.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn mcp_on_terminal(&self, args: &[&str]) -> Result<Terminal> {
        let mut line = format!("stty cols 100 rows 40; exec '{}'", binaries().mcp.display());
        for arg in args {
            write!(line, " '{arg}'")?;
        }
        let mut script = self
            .command("script")
            .args([
                "--quiet",
                "--return",
                "--flush",
                "--command",
                &line,
                "/dev/null",
            ])
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting `script` of util-linux")?;
        let keys = script.stdin.take().context("its input")?;
        let mut output = script.stdout.take().context("its output")?;
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..read]);
                shown
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Ok(Terminal {
            script,
            keys,
            screen,
            seen: 0,
        })
    }
}

impl Terminal {
    /// Everything that was written so far, control sequences and all.
    #[must_use]
    pub fn screen(&self) -> String {
        let screen = self.screen.lock();
        screen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until this is written, after what was waited for before.
    ///
    /// # Panics
    ///
    /// Where it never is.
    #[track_caller]
    pub fn sees(&mut self, text: &str) -> &mut Self {
        let until = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if let Some(at) = screen[self.seen..].find(text) {
                self.seen += at + text.len();
                return self;
            }
            assert!(
                Instant::now() < until,
                "{text:?} is not on the screen:\n{screen}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Types a line.
    ///
    /// # Panics
    ///
    /// Where the terminal is gone.
    #[track_caller]
    pub fn types(&mut self, line: &str) -> &mut Self {
        let typed = self.keys.write_all(format!("{line}\n").as_bytes());
        typed
            .and_then(|()| self.keys.flush())
            .expect("the terminal takes keys");
        self
    }

    /// Types a line once the terminal no longer shows what is typed.
    ///
    /// # Panics
    ///
    /// Where it goes on showing it.
    #[track_caller]
    pub fn types_unseen(&mut self, line: &str) -> &mut Self {
        let until = Instant::now() + PATIENCE;
        while self.echoes().unwrap_or(true) {
            assert!(
                Instant::now() < until,
                "what is typed is shown:\n{}",
                self.screen()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.types(line)
    }

    /// Whether the terminal shows what is typed.
    fn echoes(&self) -> Result<bool> {
        let script = self.script.id();
        let children = std::fs::read_to_string(format!("/proc/{script}/task/{script}/children"))?;
        let child = children.split_whitespace().next().context("no child yet")?;
        let flags = OFlags::RDONLY | OFlags::NOCTTY;
        let terminal = rustix::fs::open(format!("/proc/{child}/fd/0"), flags, Mode::empty())?;
        Ok(tcgetattr(terminal)?.local_modes.contains(LocalModes::ECHO))
    }

    /// Waits for the end; gives the exit code and everything that was on the screen.
    ///
    /// # Errors
    ///
    /// Where it does not end.
    pub fn ends(mut self) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.script.try_wait()? {
                return Ok((status.code(), self.screen()));
            }
            if Instant::now() > until {
                bail!("it does not end:\n{}", self.screen());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its terminal goes with it, and what runs there.
        drop(self.script.kill());
        drop(self.script.wait());
    }
}
