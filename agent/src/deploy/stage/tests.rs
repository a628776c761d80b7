//! What of staged files is made to last.

use mcp_spec::component::OnChange;

use super::*;
use crate::testing::{memory_dir, steps_of};

fn file(bytes: &[u8]) -> FileMount {
    FileMount {
        from: "web.conf".to_owned(),
        digest: mcp_spec::image::Digest::of(bytes),
        mode: 0o644,
        owner: None,
        on_change: OnChange::None,
    }
}

#[test]
fn a_staged_file_lasts_with_its_name_and_its_folders() {
    let dir = memory_dir();
    let staging = Staging::new(dir.path());
    let key: ComponentKey = "shop/web".parse().unwrap();
    let steps = steps_of(|| {
        let written = staging.write(&key, 1, "/web.conf", &file(b"old"), b"old");
        written.unwrap();
    });
    let path = staging.path(&key, 1, "/web.conf");
    let name = path.file_name().unwrap().to_str().unwrap();
    let beside = path.with_extension("new");
    let beside = beside.file_name().unwrap().to_str().unwrap();
    let above = dir.path().file_name().unwrap().to_str().unwrap();
    let expected = [
        "make files/".to_owned(),
        format!("flush {above}/"),
        "make shop/".to_owned(),
        "flush files/".to_owned(),
        "make web/".to_owned(),
        "flush shop/".to_owned(),
        "make g1/".to_owned(),
        "flush web/".to_owned(),
        format!("flush {beside}"),
        format!("rename {beside} to {name}"),
        "flush g1/".to_owned(),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn what_is_exchanged_in_place_lasts_and_what_was_kept_beside_it_is_gone_for_good() {
    let dir = memory_dir();
    let staging = Staging::new(dir.path());
    let key: ComponentKey = "shop/web".parse().unwrap();
    let (target, old, new) = ("/web.conf", file(b"old"), file(b"new"));
    let path = staging.path(&key, 1, target);
    staging.write(&key, 1, target, &old, b"old").unwrap();
    let steps = steps_of(|| {
        let exchanged = staging.exchange(&key, 1, target, &new, b"new", true);
        exchanged.unwrap();
    });
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(steps.last(), Some(&format!("flush {name}")));
    let files = BTreeMap::from([(target.to_owned(), new)]);
    let steps = steps_of(|| staging.settle(&key, 1, &files));
    assert_eq!(steps, ["flush g1/"]);
}
