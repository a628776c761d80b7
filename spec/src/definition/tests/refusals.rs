//! Each refusal with its message and its mend.

use super::*;

/// Each refusal: keys of a component, the message and the mend that they get.
#[rustfmt::skip]
const REFUSALS: &[(&str, &str, &str)] = &[
    ("imagee = \"x\"", "unknown key `imagee` in a component", "did you mean `image`?"),
    ("restart_policy = \"no\"", "unknown key `restart_policy`", "did you mean `restart`?"),
    ("command = [\"x\"]", "unknown key `command`", "did you mean `cmd`?"),
    ("active = false", "unknown key `active`", "above the first `[[components]]`"),
    ("memory = \"1GiB\"", "unknown key `memory`", "`resources.memory = …`"),
    ("zzzzzzzz = 1", "unknown key `zzzzzzzz`", "the keys of a component are name, kind"),
    ("secrets = []", "`secrets` is not supported yet by this release", "leave it out"),
    ("update = \"start-first\"", "`update = \"start-first\"` is not supported yet", "leave it out"),
    ("update = \"start\"", "`start` is no value of `update`", "stop-first, start-first"),
    ("devices = \"/dev/fuse\"", "`devices` is a string", "`devices = [\"/dev/fuse\"]`"),
    ("devices = [\"fuse\"]", "`fuse` is no path of a device", "`HOST[:CONTAINER][:rwm]`"),
    ("devices = [\"/dev/fuse\", \"/dev/fuse:r\"]", "the device `/dev/fuse` stands here twice", "leave one"),
    ("devices = [\"/dev/fuse:rx\"]", "`rx` is no permission of a device", "`m` (make nodes)"),
    ("device = []", "unknown key `device`", "did you mean `devices`?"),
    ("ulimits = [\"nofile=1\"]", "`ulimits` is a list", "{ nofile = 65536 }"),
    ("ulimits = { nofiles = 1 }", "`nofiles` is no limit of a process", "did you mean `nofile`?"),
    ("ulimits = { RLIMIT_NOFILE = 1 }", "`RLIMIT_NOFILE` is no limit of a process", "did you mean `nofile`?"),
    ("ulimits = { nofile = -2 }", "`ulimits.nofile` is out of range", "from -1"),
    ("ulimits = { nofile = \"many\" }", "`many` is not a limit", "`1024:4096`"),
    ("ulimits = { nofile = \"2:1\" }", "soft limit above the hard one", "the soft limit first"),
    ("ulimits = { nofile = { soft = -1, hard = 5 } }", "soft limit above the hard one", "the soft limit first"),
    ("ulimits = { nofile = { soft = 1 } }", "needs `hard`", "{ soft = 1024, hard = 4096 }"),
    ("ulimits = { nofile = { soft = 1, hrad = 2 } }", "unknown key `hrad`", "did you mean `hard`?"),
    ("sysctls = [\"net.a=1\"]", "`sysctls` is a list", "{ NAME"),
    ("sysctls = { \"vm.swappiness\" = 1 }", "not a container's own kernel parameter", "set it on the node"),
    ("network = \"host\"\nsysctls = { \"net.core.somaxconn\" = 1 }", "the node's with `network", "set it on the node"),
    ("security_opt = [\"seccomp=/x.json\"]", "no seccomp profile but the engine's own", "`seccomp=unconfined`"),
    ("security_opt = [\"seccomp=unconfined\", \"seccomp:unconfined\"]", "the option `seccomp` stands here twice", "leave one"),
    ("security_opt = [\"aparmor=x\"]", "`aparmor=x` is no security option", "did you mean `apparmor`?"),
    ("privileged = \"true\"", "`privileged` is a string", "leave out the quotes"),
    ("privileged = true\ncap_add = [\"NET_ADMIN\"]", "`cap_add` means nothing with `privileged", "leave `privileged` out"),
    ("log = \"json-file\"", "`log` is a string", "{ driver = \"json-file\""),
    ("log = {}", "`log` needs `driver`", "{ driver = \"json-file\""),
    ("log = { driver = \"a b\" }", "`a b` is no name of a log driver", "`journald`"),
    ("log = { driver = \"k8s-file\", options = { path = \"/x\" } }", "with its own rights", "leave `path` out"),
    ("log = { driver = \"local\", max-size = \"1m\" }", "unknown key `max-size`", "options = { max-size"),
    ("logging = {}", "unknown key `logging`", "did you mean `log`?"),
    ("network = \"none\"\nextra_hosts = { a = \"host-gateway\" }", "`host-gateway` cannot be reached", "join a network"),
    ("kind = \"jobb\"", "`jobb` is no value of `kind`", "did you mean `job`?"),
    ("exit_codes = [0]", "`exit_codes` is for jobs only", "add `kind = \"job\"`"),
    ("kind = \"job\"\nexit_codes = []", "never ends well", "`exit_codes = [0]`"),
    ("kind = \"job\"\nexit_codes = [256]", "an exit code is out of range", "from 0 to 255"),
    ("kind = \"job\"\nrestart = \"always\"", "a job ends", "on-failure"),
    ("kind = \"job\"\nrestart = \"unless-stopped\"", "a job ends", "on-failure"),
    ("pull = \"allways\"", "`allways` is no value of `pull`", "did you mean `always`?"),
    ("entrypoint = []\ncmd = []", "nothing to run", "leave one out"),
    ("entrypoint = [\"\"]", "the program of `entrypoint` is empty", "write the program first"),
    ("cmd = \"sh -c x\"", "`cmd` is a string, and must be a list", "`cmd = [\"sh\", \"-c\", \"x\"]`"),
    ("cmd = [1]", "an item of `cmd` is an integer", "put it in quotes: \"1\""),
    ("cmd = [\"a\\u0000b\"]", "an item of `cmd` holds a NUL byte", "take the"),
    ("env = [\"A=b\"]", "`env` is a list, and must be a table", "`env = { NAME = \"value\" }`"),
    ("env = { A = [1] }", "`env.A` is a list", "in quotes"),
    ("env = { A = 1979-05-27 }", "`env.A` is a date", "in quotes"),
    ("env = { A = \"x\\u0000\" }", "`env.A` holds a NUL byte", "take the"),
    ("env = { \"\" = \"x\" }", "`` is no name of a variable", "not empty"),
    ("env = { \"A=B\" = \"x\" }", "`A=B` is no name of a variable", "no `=`"),
    ("user = 0", "`user` is an integer", "put it in quotes: \"0\""),
    ("user = \"a b\"", "`a b` is not a user", "`USER:GROUP`"),
    ("workdir = \"srv\"", "`workdir` `srv` is not absolute", "write `/srv`"),
    ("hostname = \"a_b\"", "`a_b` is not a host name", "inner hyphens"),
    ("network = \"container:x\"", "shares another container's network", "join one user network"),
    ("network = \"podman\"", "`podman` is a word of the engine", "another name"),
    ("network = \"My_Net\"", "`My_Net` is not a name", "write `my-net`"),
    ("network = [\"a\", \"b\"]", "`network` is a list", "several in `networks`"),
    ("networks = []", "`networks` is empty", "`network = \"none\"`"),
    ("networks = [\"host\"]", "`host` is a word of the engine", "alone"),
    ("networks = [\"a\", \"a\"]", "the network `a` stands here twice", "leave one of them out"),
    ("networks = \"a\"", "`networks` is a string", "`networks = [\"NAME\"]`"),
    ("networks = { a = 1 }", "the network `a` is an integer", "aliases"),
    ("networks = { a = { alias = [\"b\"] } }", "unknown key `alias`", "did you mean `aliases`?"),
    ("networks = { a = { aliases = [\"b c\"] } }", "`b c` is not an alias", "host name"),
    ("network = \"a\"\nnetworks = [\"b\"]", "either `network` or `networks`", "leave `network` out"),
    ("ports = [8080]", "an item of `ports` is an integer", "put it in quotes"),
    ("ports = \"8080:80\"", "`ports` is a string", "`ports = [\"8080:80\"]`"),
    ("ports = [\"0:80\"]", "asks for port 0", "clients"),
    ("ports = [\"80-90:80-91\"]", "pairs 11 ports of the node with 12", "equal length"),
    ("ports = [\"8000-9999:8000-9999\"]", "at most 1024 ports", "smaller range"),
    ("network = \"host\"\nports = [\"80:80\"]", "not published with `network = \"host\"`", "leave `ports` out"),
    ("network = \"none\"\nports = [\"80:80\"]", "cannot be published", "join a user network"),
    ("ports = [\"80:80\", \"0.0.0.0:80:81\"]", "port 80/tcp of rift is taken by `shop/web`", "another port"),
    ("volumes = [\"a:/x\", \"b:/x/\"]", "`/x` is a mount target already (line 6)", "another path"),
    ("volumes = [\"a:/x\"]\ntmpfs = [\"/x\"]", "`/x` is a mount target already", "share their targets"),
    ("tmpfs = [\"/x\"]\nfiles = [{ from = \"files/shop/a\", to = \"/x\" }]", "`/x` is a mount target already", "share their targets"),
    ("volumes = [\"./a:/x\"]", "is relative", "with `files`"),
    ("tmpfs = [\"/x:nope=1\"]", "`nope=1` is no option of a tmpfs", "the options are size"),
    ("restart = \"allways\"", "`allways` is not a restart policy", "did you mean `always`?"),
    ("restart = false", "`restart` is a boolean", "`restart = \"no\"`"),
    ("restart = \"on-failure:0\"", "is not a restart policy", "on-failure"),
    ("init = \"true\"", "`init` is a string", "leave out the quotes: `init = true`"),
    ("init = 1", "`init` is an integer", "`init = true` or `init = false`"),
    ("depends_on = [\"wbe\"]", "the service has no component `wbe`", "leave it out"),
    ("depends_on = [\"web\"]", "the component `web` depends on itself", "leave its own name out"),
    ("depends_on = { a = {} }", "`depends_on` is a table", "`depends_on = […]`"),
    ("health = {}", "`health` needs `cmd`", "write one of"),
    ("health = true", "`health` is a boolean", "health = { cmd"),
    ("health = { test = [\"x\"] }", "unknown key `test` in `health`", "did you mean `cmd`?"),
    ("health = { cmd = [\"x\"], tcp = 1 }", "`health` asks in two ways: `cmd` and `tcp`", "keep one"),
    ("health = { cmd = [] }", "`cmd` is empty", "write a program"),
    ("health = { tcp = 0 }", "`tcp` is out of range", "from 1 to 65535"),
    ("health = { tcp = \"80\" }", "`tcp` is a string", "leave out the quotes"),
    ("health = { http = \"https://api:1/x\" }", "asks its own container", "`https://:1/x`"),
    ("health = { tcp = 80, interval = \"0s\" }", "`interval` cannot be zero", "`interval = \"10s\"`"),
    ("health = { tcp = 80, interval = 5 }", "`interval` has no unit", "`interval = \"5s\"`"),
    ("health = { tcp = 80, retries = 0 }", "`retries` is out of range", "from 1"),
    ("network = \"none\"\nhealth = { tcp = 80 }", "without a network by `tcp`", "use `cmd`"),
    ("network = \"none\"\nhealth = { http = \"http://:80/\" }", "without a network by `http`", "use `cmd`"),
    ("health = { tcp = 80, image = \"x\" }", "unknown key `image` in `health`", "above `[components.health]`"),
    ("resources = { memory = 512 }", "`memory` has no unit", "`memory = \"512MiB\"`"),
    ("resources = { memory = \"512\" }", "the size `512` has no unit", "write `512MiB`"),
    ("resources = { memory = \"1MiB\" }", "too little memory", "`6MiB`"),
    ("resources = { memory = \"1x\" }", "`x` is no unit of size", "KiB"),
    ("resources = { cpus = 0 }", "`cpus` is out of range", "from 0.01"),
    ("resources = { cpus = -1.5 }", "`cpus` is out of range", "from 0.01"),
    ("resources = { cpus = nan }", "`cpus` is out of range", "from 0.01"),
    ("resources = { cpus = \"1\" }", "`cpus` is a string", "`cpus = 1.5`"),
    ("resources = { pids = 0 }", "`pids` is out of range", "from 1"),
    ("resources = { cpu = 1 }", "unknown key `cpu`", "did you mean `cpus`?"),
    ("cap_add = [\"NET_ADMN\"]", "`NET_ADMN` is not a capability", "did you mean `NET_ADMIN`?"),
    ("cap_add = [\"KILL\"]\ncap_drop = [\"cap_kill\"]", "`KILL` is both added and dropped", "one of"),
    ("labels = { \"mcp.x\" = \"1\" }", "the label `mcp.x` belongs to the agent", "does not start with"),
    ("stop_signal = \"SIGTREM\"", "`SIGTREM` is not a signal", "did you mean `SIGTERM`?"),
    ("stop_signal = 99", "`99` is not a signal", "Linux number"),
    ("stop_timeout = \"10\"", "the duration `10` has no unit", "write `10s`"),
    ("stop_timeout = 10", "`stop_timeout` has no unit", "`stop_timeout = \"10s\"`"),
    ("stop_timeout = \"ten\"", "`ten` is not a duration", "as in `10s`"),
    ("ready_for = \"400d\"", "longer than 365 days", "shorter"),
    ("extra_hosts = [\"db\"]", "`db` is no line of `extra_hosts`", "`NAME:ADDRESS`"),
    ("extra_hosts = [\"db:x\"]", "`x` is not an IP address", "host-gateway"),
    ("extra_hosts = [\"db:10.0.0.1\", \"db:10.0.0.2\"]", "the host `db` stands here twice", "leave one"),
    ("dns = [\"example.net\"]", "`example.net` is not an IP address", "name server"),
    ("dns = [\"1.1.1.1\", \"1.1.1.1\"]", "stands here twice", "leave one"),
    ("files = [{ from = \"files/shop/a\" }]", "an item of `files` needs `to`", "to ="),
    ("files = [{ to = \"/a\" }]", "an item of `files` needs `from`", "from ="),
    ("files = [\"files/shop/a:/a\"]", "an item of `files` is a string", "from ="),
    ("files = [{ from = \"files/shop/absent\", to = \"/a\" }]", "holds no file `files/shop/absent`", "add the file"),
    ("files = [{ from = \"../a\", to = \"/a\" }]", "`../a` has a `..`", "`files/shop/…`"),
    ("files = [{ from = \"/etc/passwd\", to = \"/a\" }]", "is absolute", "`files/shop/…`"),
    ("files = [{ from = \"files/other/a\", to = \"/a\" }]", "belongs to `other`", "`files/shop/…`"),
    ("files = [{ from = \"README.md\", to = \"/a\" }]", "outside of the service's files", "`files/shop/…`"),
    ("files = [{ from = \"files/shop\", to = \"/a\" }]", "outside of the service's files", "`files/shop/…`"),
    ("files = [{ from = \"files/shop/a\", to = \"a\" }]", "the target `a` is not absolute", "write `/a`"),
    ("files = [{ from = \"files/shop/a\", to = \"/a\", mode = \"rw\" }]", "not a file mode", "0640"),
    ("files = [{ from = \"files/shop/a\", to = \"/a\", mode = 640 }]", "`mode` is an integer", "\"640\""),
    ("files = [{ from = \"files/shop/a\", to = \"/a\", owner = \"me\" }]", "not an owner", "1000:1000"),
    ("files = [{ from = \"files/shop/a\", to = \"/a\", on_change = \"reload\" }]", "no value of `on_change`", "signal:HUP"),
    ("files = [{ from = \"files/shop/a\", to = \"/a\", on_change = \"signal:X\" }]", "`X` is not a signal", "name"),
    ("files = [{ from = \"files/shop/a\", to = \"/a\", src = \"x\" }]", "unknown key `src`", "did you mean `from`?"),
    ("name = \"web\"", "the key `name` stands here twice", "keep one of them"),
    ("cmd = [\"a\"", "this is not TOML", "close the list"),
    ("user = \"a", "this is not TOML", "close the string"),
    ("user = me", "this is not TOML", "put the text in quotes"),
];

#[test]
fn every_refusal_names_the_thing_and_the_mend() {
    for (keys, message, hint) in REFUSALS {
        let text = format!(
            "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"web:v1\"\n{keys}\n"
        );
        let (spec, errors) = one("services/shop.toml", &text);
        assert_eq!(spec, None, "{keys}");
        let shown: Vec<String> = errors.iter().map(DefinitionError::render).collect();
        assert!(
            errors.iter().any(|error| error.message.contains(message)
                && error.hint.as_deref().unwrap_or_default().contains(hint)),
            "{keys}\nwanted: {message} / {hint}\n{}",
            shown.join("\n")
        );
        assert_eq!(errors.len(), 1, "{keys}\n{}", shown.join("\n"));
        assert!(errors[0].line >= 5, "{keys}: {}", errors[0]);
    }
}

/// Each refusal of a whole file `services/shop.toml`.
#[rustfmt::skip]
const FILE_REFUSALS: &[(&str, &str, &str)] = &[
    ("node = \"rift\"\n{C}", "a service needs `name`", "`name = \"shop\"`"),
    ("name = \"shop\"\n{C}", "a service needs `node`", "`node = \"NAME\"`"),
    ("name = \"shop\"\nnode = \"rift\"", "a service needs `components`", "[[components]]"),
    ("name = \"shop\"\nnode = \"rift\"\ncomponents = []", "has no component", "[[components]]"),
    ("name = \"shop\"\nnode = \"rift\"\n[components]\nname = \"web\"", "`components` is a table", "[[components]]"),
    ("name = \"shopp\"\nnode = \"rift\"\n{C}", "named `shopp`, and its file `shop.toml`", "rename the file"),
    ("name = \"Shop\"\nnode = \"rift\"\n{C}", "`S` cannot stand there", "write `shop`"),
    ("name = \"podman\"\nnode = \"rift\"\n{C}", "`podman` is reserved", "take another name"),
    ("name = \"shop\"\nnode = \"ri ft\"\n{C}", "`ri ft` is not a name", "write `ri-ft`"),
    ("name = \"shop\"\nnode = \"rift\"\nactive = 1\n{C}", "`active` is an integer", "`active = true`"),
    ("name = \"shop\"\nnode = \"rift\"\nalert = \"no\"\n{C}", "`alert` is a string", "`alert = true`"),
    ("name = \"shop\"\nnode = \"rift\"\ndeadline = \"5\"\n{C}", "has no unit", "write `5s`"),
    ("name = \"shop\"\nnode = \"rift\"\ndeadline = \"0s\"\n{C}", "`deadline` cannot be zero", "`deadline = \"5m\"`"),
    ("name = \"shop\"\nnode = \"rift\"\nreconcile = \"atuo\"\n{C}", "no value of `reconcile`", "did you mean `auto`?"),
    ("name = \"shop\"\nnode = \"rift\"\non_failure = \"keep\"\n{C}", "no value of `on_failure`", "keep-old, leave"),
    ("name = \"shop\"\nnode = \"rift\"\nimage = \"x\"\n{C}", "unknown key `image` in a service", "below `[[components]]`"),
    ("name = \"shop\"\nnode = \"rift\"\n[[component]]\n{C}", "unknown key `component`", "`[[components]]`"),
    ("name = \"shop\"\nnode = \"rift\"\n[[component]]\nname = \"x\"", "unknown key `component`", "did you mean `components`?"),
    ("name = \"shop\"\nnode = \"rift\"\n[[components]]\nimage = \"x\"", "a component needs `name`", "`name = \"web\"`"),
    ("name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"x\"", "a component needs `image`", "write `image"),
    ("name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"x\"\nimage = \"X Y\"", "is not an image reference", "`NAME:TAG`"),
    ("name = \"shop\"\nnode = \"rift\"\n{C}{C}", "the component `web` is there already (line 4)", "name of its own"),
    ("name = \"shop\"\nnode = \"rift\"\n{C}[other]\nx = 1", "unknown key `other`", "the keys of a service are"),
];

#[test]
fn every_refusal_of_a_service_names_the_thing_and_the_mend() {
    for (text, message, hint) in FILE_REFUSALS {
        let text = text.replace(
            "{C}",
            "[[components]]\nname = \"web\"\nimage = \"web:v1\"\n",
        );
        let (_, errors) = one("services/shop.toml", &text);
        let shown: Vec<String> = errors.iter().map(DefinitionError::render).collect();
        assert!(
            errors.len() == 1
                && errors[0].message.contains(message)
                && errors[0].hint.as_deref().unwrap_or_default().contains(hint),
            "{text}\nwanted: {message} / {hint}\n{}",
            shown.join("\n")
        );
    }
}
