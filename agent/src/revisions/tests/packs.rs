//! Hostile packs, byte by byte: each is refused by its own name, and leaves nothing behind.

use super::super::{Limits, ReceiveError};
use super::raw::{
    BLOB, COMMIT, OFFSET_DELTA, RawPack, TREE, compressed, copying, delta, distance_bytes, sha1,
};
use super::scene::Scene;

const MIB: u64 = 1024 * 1024;

/// An agent with a head, and a commit upon it that was not pushed.
struct Door {
    scene: Scene,
}

impl Door {
    fn new() -> Self {
        let scene = Scene::new();
        scene.push().unwrap();
        scene.write("files/shop/conf", "new\n");
        scene.commit(Some("kyle"), "conf");
        Self { scene }
    }

    fn honest(&self) -> Vec<u8> {
        self.scene.pack(self.scene.store.head(), self.scene.tip())
    }

    fn refusal(&self, pack: &[u8]) -> ReceiveError {
        let before = self.scene.fingerprint();
        let (head, tip) = (self.scene.store.head(), self.scene.tip());
        let error = self.scene.receive(pack, head, tip).unwrap_err();
        self.scene.assert_untouched(&before);
        assert_eq!(self.scene.store.head(), head);
        error
    }

    fn name(&self, pack: &[u8]) -> &'static str {
        self.refusal(pack).name()
    }
}

fn one(build: impl FnOnce(&mut RawPack)) -> Vec<u8> {
    let mut pack = RawPack::new();
    build(&mut pack);
    pack.finish()
}

#[test]
fn what_is_no_pack_is_refused_by_name() {
    let door = Door::new();
    let honest = door.honest();
    let with = |at: usize, bytes: &[u8]| {
        let mut odd = honest.clone();
        odd[at..at + bytes.len()].copy_from_slice(bytes);
        odd
    };
    let count = u32::from_be_bytes(honest[8..12].try_into().unwrap());
    for (pack, name) in [
        (Vec::new(), "truncated-pack"),
        (b"PACK".to_vec(), "truncated-pack"),
        (b"# v2 git bundle\n".to_vec(), "not-a-pack"),
        (b"0000PACK\0\0\0\x02\0\0\0\x01".to_vec(), "not-a-pack"),
        (with(0, b"PUCK"), "not-a-pack"),
        (with(4, &0u32.to_be_bytes()), "pack-version"),
        (with(4, &1u32.to_be_bytes()), "pack-version"),
        (with(4, &3u32.to_be_bytes()), "pack-version"),
        (with(4, &(2u32 << 24).to_be_bytes()), "pack-version"),
        (with(8, &0u32.to_be_bytes()), "empty-pack"),
        (with(8, &(count - 1).to_be_bytes()), "pack-goes-on"),
        (with(8, &500_001u32.to_be_bytes()), "too-many-objects"),
        (with(8, &u32::MAX.to_be_bytes()), "too-many-objects"),
        ([honest.as_slice(), b"\0"].concat(), "pack-goes-on"),
        (
            [honest.as_slice(), honest.as_slice()].concat(),
            "pack-goes-on",
        ),
        (
            with(honest.len() - 1, &[!honest[honest.len() - 1]]),
            "pack-checksum",
        ),
        (with(honest.len() - 20, &[0; 20]), "pack-checksum"),
    ] {
        assert_eq!(door.name(&pack), name, "{:?}…", &pack[..pack.len().min(16)]);
    }
    // One object more than there is: the checksum is read for it.
    let claims = door.name(&with(8, &(count + 1).to_be_bytes()));
    let expected = [
        "truncated-pack",
        "tag",
        "entry-kind",
        "entry-size",
        "garbled-entry",
        "object-too-large",
        "delta-without-base",
        "reference-delta",
    ];
    assert!(expected.contains(&claims), "{claims}");
    door.scene.push().unwrap();
}

#[test]
fn pack_cut_short_anywhere_is_truncated() {
    let door = Door::new();
    let honest = door.honest();
    for end in (0..honest.len()).step_by(3).chain([honest.len() - 1]) {
        assert_eq!(door.name(&honest[..end]), "truncated-pack", "{end}");
    }
}

#[test]
fn pack_with_any_byte_changed_is_refused() {
    let door = Door::new();
    let honest = door.honest();
    for at in (0..honest.len()).step_by(5) {
        for bit in [0x01, 0x80] {
            let mut changed = honest.clone();
            changed[at] ^= bit;
            door.refusal(&changed);
        }
    }
}

#[test]
fn entries_that_lie_are_refused_by_name() {
    let door = Door::new();
    let text = compressed(b"hello");
    let mut wrong_sum = text.clone();
    *wrong_sum.last_mut().unwrap() ^= 1;
    let mut long_size = vec![0xb5];
    long_size.extend([0xff; 12]);
    long_size.push(1);
    for (pack, name) in [
        (one(|pack| _ = pack.entry(0, 5, &[], &text)), "entry-kind"),
        (one(|pack| _ = pack.entry(5, 5, &[], &text)), "entry-kind"),
        (one(|pack| _ = pack.entry(4, 5, &[], &text)), "tag"),
        (
            one(|pack| _ = pack.entry(BLOB, 4, &[], &text)),
            "entry-size",
        ),
        (
            one(|pack| _ = pack.entry(BLOB, 6, &[], &text)),
            "entry-size",
        ),
        (
            one(|pack| _ = pack.entry(BLOB, 0, &[], &text)),
            "entry-size",
        ),
        (
            one(|pack| _ = pack.entry(BLOB, 1 << 50, &[], &text)),
            "object-too-large",
        ),
        (
            one(|pack| {
                pack.object(BLOB, b"x");
                pack.bytes.extend(&long_size);
            }),
            "pack-goes-on",
        ),
        (
            one(|pack| _ = pack.entry(BLOB, 5, &[], b"hello, this is not zlib at all")),
            "garbled-entry",
        ),
        (
            one(|pack| _ = pack.entry(BLOB, 5, &[], &wrong_sum)),
            "garbled-entry",
        ),
        (
            one(|pack| {
                pack.object(BLOB, b"twice");
                pack.object(BLOB, b"twice");
            }),
            "duplicate-object",
        ),
    ] {
        assert_eq!(door.name(&pack), name);
    }
    let mut pack = RawPack::new();
    pack.bytes.extend(&long_size);
    assert_eq!(door.name(&pack.finish_saying(1)), "entry-size-range");
}

#[test]
fn deltas_without_end_or_beginning_are_refused_by_name() {
    let door = Door::new();
    let grow = delta(5, 6, b"\x90\x05\x01!");
    let head = *door.scene.store.head().unwrap().as_bytes();
    let hello = sha1(b"blob 5\0hello");
    for (pack, name) in [
        // Each names the other, itself, nothing, what comes later, or what the agent has: all by id.
        (
            one(|pack| {
                pack.reference_delta(&[1; 20], &grow);
                pack.reference_delta(&[2; 20], &grow);
            }),
            "reference-delta",
        ),
        (
            one(|pack| _ = pack.reference_delta(&head, &grow)),
            "reference-delta",
        ),
        (
            one(|pack| {
                pack.reference_delta(&hello, &grow);
                pack.object(BLOB, b"hello");
            }),
            "reference-delta",
        ),
        (
            one(|pack| {
                let size = grow.len() as u64;
                pack.entry(OFFSET_DELTA, size, &[0], &compressed(&grow));
            }),
            "delta-without-base",
        ),
        (
            one(|pack| {
                let size = grow.len() as u64;
                pack.entry(
                    OFFSET_DELTA,
                    size,
                    &distance_bytes(1 << 30),
                    &compressed(&grow),
                );
            }),
            "delta-without-base",
        ),
        (
            one(|pack| {
                let size = grow.len() as u64;
                pack.entry(OFFSET_DELTA, size, &[0xff; 12], &compressed(&grow));
            }),
            "delta-without-base",
        ),
        (
            one(|pack| {
                // The head of the pack, and the middle of an entry.
                pack.object(BLOB, b"hello");
                pack.offset_delta(0, &grow);
            }),
            "delta-without-base",
        ),
        (
            one(|pack| {
                let base = pack.object(BLOB, b"hello");
                pack.offset_delta(base + 1, &grow);
            }),
            "delta-without-base",
        ),
        (
            one(|pack| {
                let mut base = pack.object(BLOB, b"hello");
                for _ in 0..251 {
                    base = pack.offset_delta(base, &delta(5, 5, b"\x90\x05"));
                }
            }),
            "deltas-too-deep",
        ),
    ] {
        assert_eq!(door.name(&pack), name);
    }
}

#[test]
fn garbled_deltas_are_refused_by_name() {
    let door = Door::new();
    let upon = |odd: &[u8]| {
        one(|pack| {
            let base = pack.object(BLOB, b"hello");
            pack.offset_delta(base, odd);
        })
    };
    for (odd, name) in [
        (Vec::new(), "garbled-delta"),
        (vec![5], "garbled-delta"),
        (vec![0xff; 40], "garbled-delta"),
        // Copies from beyond its base, in part and altogether.
        (delta(5, 6, b"\x90\x06"), "garbled-delta"),
        (
            delta(5, 6, b"\xff\xff\xff\xff\xff\x06\0\0"),
            "garbled-delta",
        ),
        // Makes more and less than it says.
        (delta(5, 4, b"\x90\x05"), "garbled-delta"),
        (delta(5, 7, b"\x90\x05"), "garbled-delta"),
        // For a base of another size.
        (delta(4, 5, b"\x90\x05"), "garbled-delta"),
        // The reserved instruction, and one that is cut off.
        (delta(5, 5, b"\0\x90\x05"), "garbled-delta"),
        (delta(5, 9, b"\x09hel"), "garbled-delta"),
        (delta(5, 33 * MIB, b"\x90\x05"), "object-too-large"),
        (delta(5, 1 << 54, b"\x90\x05"), "object-too-large"),
    ] {
        assert_eq!(door.name(&upon(&odd)), name, "{odd:?}");
    }
}

#[test]
fn bombs_are_refused_by_name_before_they_go_off() {
    let door = Door::new();
    let zeros = vec![0; usize::try_from(33 * MIB).unwrap()];
    let bomb = one(|pack| _ = pack.object(BLOB, &zeros));
    assert!(bomb.len() < 100_000);
    assert_eq!(door.name(&bomb), "object-too-large");
    // Says that it is small.
    let lies = one(|pack| _ = pack.entry(BLOB, 100, &[], &compressed(&zeros)));
    assert_eq!(door.name(&lies), "entry-size");
    // A chain of deltas upon one base: a few bytes each, and every one makes 16 MiB.
    let large = 16 * MIB;
    let again = delta(large, large, &copying(large));
    let chain = one(|pack| {
        let mut base = pack.object(BLOB, &zeros[..usize::try_from(large).unwrap()]);
        for _ in 0..40 {
            base = pack.offset_delta(base, &again);
        }
    });
    assert!(chain.len() < 100_000);
    assert_eq!(door.name(&chain), "delta-chain-too-large");
    let wide = one(|pack| {
        let base = pack.object(BLOB, &zeros[..usize::try_from(large).unwrap()]);
        for _ in 0..70 {
            pack.offset_delta(base, &again);
        }
    });
    assert_eq!(door.name(&wide), "inflates-too-large");
}

#[test]
fn commit_with_ten_thousands_of_parents_costs_no_more_than_its_bytes() {
    let door = Door::new();
    let tree = door.scene.git(&["rev-parse", "HEAD^{tree}"]);
    let commit = |parents: u32| {
        let mut raw = format!("tree {tree}");
        for number in 0..parents {
            raw += &format!("parent {number:040x}\n");
        }
        raw + "author K <k> 1 +0000\ncommitter K <k> 1 +0000\n\nmany\n"
    };
    let receive = |raw: &str| {
        let id = sha1(format!("commit {}\0{raw}", raw.len()).as_bytes());
        let new = mcp_spec::revision::CommitId::from_bytes(id);
        let pack = one(|pack| _ = pack.object(COMMIT, raw.as_bytes()));
        let before = door.scene.fingerprint();
        let refused = door.scene.receive(&pack, door.scene.store.head(), new);
        door.scene.assert_untouched(&before);
        refused.unwrap_err()
    };
    assert_eq!(receive(&commit(600_000)).name(), "commit-too-large");
    assert_eq!(receive(&commit(20_000)).name(), "missing-object");
}

#[test]
fn every_bound_of_a_pack_holds_for_a_small_node_too() {
    let door = Door::new();
    let small = Limits {
        delta_chain_bytes: 10,
        ..Limits::default()
    };
    let pack = one(|pack| {
        let base = pack.object(BLOB, b"hello");
        pack.object(TREE, b"");
        pack.offset_delta(base, &delta(5, 6, b"\x90\x05\x01!"));
    });
    let (head, tip) = (door.scene.store.head(), door.scene.tip());
    let refused = door.scene.receive_within(&pack, head, tip, &small);
    assert_eq!(refused.unwrap_err().name(), "delta-chain-too-large");
}
