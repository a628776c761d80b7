//! What is sealed for one place and one node opens there and nowhere else.

use super::*;

fn service() -> ServiceName {
    "shop".parse().unwrap()
}

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn to(nodes: &[(&str, &Identity)]) -> BTreeMap<NodeName, String> {
    nodes
        .iter()
        .map(|(node, identity)| (node.parse().unwrap(), identity.recipient()))
        .collect()
}

#[test]
fn each_node_that_it_is_sealed_to_opens_it_and_no_other() {
    let (rift, quill, other) = (
        Identity::generate(),
        Identity::generate(),
        Identity::generate(),
    );
    let nodes = to(&[("rift", &rift), ("quill", &quill)]);
    for plain in [
        &b""[..],
        b"hunter2",
        &[0, 10, 255],
        &vec![7; MAX_VALUE_BYTES],
    ] {
        let value = Value::new(plain.to_vec());
        let sealed = seal(&service(), &name("db"), &value, &nodes).unwrap();
        for identity in [&rift, &quill] {
            let old = [other.clone(), identity.clone()];
            let opened = open(&service(), &name("db"), &sealed, &old).unwrap();
            assert_eq!(opened.expose(), plain);
        }
        assert_eq!(
            open(
                &service(),
                &name("db"),
                &sealed,
                std::slice::from_ref(&other)
            ),
            Err(OpenError::NotForUs)
        );
        assert_eq!(
            open(&service(), &name("db"), &sealed, &[]),
            Err(OpenError::NotForUs)
        );
        assert_eq!(recipients_of(&sealed).unwrap(), nodes);
    }
}

#[test]
fn a_file_that_is_moved_to_another_service_or_name_is_refused_there() {
    let rift = Identity::generate();
    let value = Value::new(b"hunter2".to_vec());
    let sealed = seal(&service(), &name("db"), &value, &to(&[("rift", &rift)])).unwrap();
    let elsewhere = OpenError::Elsewhere {
        service: "shop".to_owned(),
        name: "db".to_owned(),
    };
    let keys = [rift];
    assert_eq!(
        open(&service(), &name("api"), &sealed, &keys),
        Err(elsewhere.clone())
    );
    assert_eq!(
        open(&"cart".parse().unwrap(), &name("db"), &sealed, &keys),
        Err(elsewhere)
    );
}

#[test]
fn whatever_is_changed_in_a_file_it_does_not_open() {
    let rift = Identity::generate();
    let value = Value::new(b"hunter2".to_vec());
    let sealed = seal(&service(), &name("db"), &value, &to(&[("rift", &rift)])).unwrap();
    let keys = [rift];
    for index in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[index] ^= 1;
        assert!(
            open(&service(), &name("db"), &changed, &keys).is_err(),
            "{index}"
        );
        assert!(
            open(&service(), &name("db"), &sealed[..index], &keys).is_err(),
            "{index}"
        );
    }
    let too_large = vec![b'a'; MAX_SEALED_BYTES + 1];
    assert_eq!(
        open(&service(), &name("db"), &too_large, &keys),
        Err(OpenError::Malformed)
    );
    assert_eq!(
        recipients_of(b"age-encryption.org/v1\n-> X"),
        Err(HeaderError)
    );
}

#[test]
fn what_is_encrypted_and_no_envelope_is_refused() {
    let rift = Identity::generate();
    for plain in [
        &b"hunter2"[..],
        b"mcp-secret 1\nshop\ndb\n99\nshort",
        b"mcp-secret 2\nshop\ndb\n0\n",
    ] {
        let sealed = age::encrypt(&rift.0.to_public(), plain).unwrap();
        assert_eq!(
            open(
                &service(),
                &name("db"),
                &sealed,
                std::slice::from_ref(&rift)
            ),
            Err(OpenError::NoEnvelope)
        );
    }
}

#[test]
fn neither_the_length_nor_debug_tells_the_value() {
    let rift = Identity::generate();
    // age adds stanzas of random length for good measure, so it is the inside that is looked at.
    let length = |text: &str| envelope(&service(), &name("db"), text.as_bytes()).len();
    assert_eq!(length("a"), length("a password of some thirty bytes"));
    assert_eq!(
        format!("{:?}", Value::new(b"hunter2".to_vec())),
        "Value(7 bytes)"
    );
    let text = rift.to_text();
    assert!(!format!("{rift:?}").contains(text.as_str()));
    assert_eq!(
        Identity::parse(&text).unwrap().recipient(),
        rift.recipient()
    );
    assert!(is_recipient(&rift.recipient()));
    assert!(!is_recipient(&rift.recipient().replace("age1", "age2")));
}

#[test]
fn a_value_that_is_too_large_and_one_for_nobody_are_refused() {
    let rift = Identity::generate();
    let value = Value::new(vec![0; MAX_VALUE_BYTES + 1]);
    let nodes = to(&[("rift", &rift)]);
    assert!(matches!(
        seal(&service(), &name("db"), &value, &nodes),
        Err(SealError::TooLarge { .. })
    ));
    let value = Value::new(vec![0]);
    assert!(matches!(
        seal(&service(), &name("db"), &value, &BTreeMap::new()),
        Err(SealError::Nobody)
    ));
}
