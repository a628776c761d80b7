//! What an engine refuses is told by its meaning.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use mcp_agent::runtime::{LogOptions, Runtime, RuntimeError};
use mcp_spec::image::Digest;
use mcp_spec::observed::ContainerId;
use mcp_tests::engine::{Lane, wait};
use mcp_tests::lanes;

use crate::bench::{Bench, PAUSE, component};

lanes!(
    taken_name_is_told_and_the_foreigner_left_alone,
    missing_things_are_told_as_missing,
    taken_port_is_told,
);

fn taken_name_is_told_and_the_foreigner_left_alone(lane: Lane) {
    let bench = Bench::new(lane);
    bench.engine.remove("taken-web").unwrap();
    let foreign = bench
        .engine
        .run_foreign("taken-web", &["--network", "none"])
        .unwrap();
    wait(async {
        let bench = Bench::new(lane);
        let spec = component("taken", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("taken-web", spec).await;
        let error = bench.runtime.create(&request).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::NameTaken { name } if name == "taken-web"),
            "{error:?}"
        );
        request.name = "taken-1".to_owned();
        bench.clear(&["taken-1"]).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let error = bench.runtime.rename(&id, "taken-web").await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::NameTaken { name } if name == "taken-web"),
            "{error:?}"
        );
        let live = bench.runtime.inspect("taken-web").await.unwrap().unwrap();
        assert_eq!(live.id.as_str(), foreign);
        assert!(live.state.is_running());
        // The start of an id or a name names nothing.
        assert_eq!(bench.runtime.inspect(&foreign[..10]).await.unwrap(), None);
        assert_eq!(bench.runtime.inspect("taken").await.unwrap(), None);
        bench.clear(&["taken-1", "taken-web"]).await;
    });
}

fn missing_things_are_told_as_missing(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let gone = ContainerId::new("0123456789abcdef".repeat(4));
        let runtime = &bench.runtime;
        let missing = |error: RuntimeError| {
            assert!(matches!(error, RuntimeError::NotFound { .. }), "{error:?}");
        };
        missing(runtime.start(&gone).await.unwrap_err());
        missing(
            runtime
                .stop(&gone, Duration::from_secs(1))
                .await
                .unwrap_err(),
        );
        missing(runtime.signal(&gone, "SIGHUP").await.unwrap_err());
        missing(runtime.rename(&gone, "other").await.unwrap_err());
        let command = ["/bin/true".to_owned()];
        missing(
            runtime
                .exec(&gone, &command, Duration::from_secs(5))
                .await
                .unwrap_err(),
        );
        assert!(runtime.logs(&gone, &LogOptions::default()).await.is_err());
        assert_eq!(runtime.inspect(gone.as_str()).await.unwrap(), None);
        runtime.remove(gone.as_str()).await.unwrap();
        let image = "localhost/mcp-test/absent:v1".parse().unwrap();
        assert_eq!(runtime.image(&image).await.unwrap(), None);
        let spec = component("missing", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("missing-web", spec).await;
        let held = runtime.image_by_id(&request.image).await.unwrap().unwrap();
        assert_eq!(held.id, request.image);
        assert!(held.size_bytes > 0);
        request.image = mcp_spec::observed::ImageId::new(Digest::of(b"none").to_string());
        assert_eq!(runtime.image_by_id(&request.image).await.unwrap(), None);
        missing(runtime.create(&request).await.unwrap_err());
    });
}

fn taken_port_is_told(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let none = BTreeMap::new();
        bench.runtime.ensure_network("ports", &none).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let keys = format!("{PAUSE}\nnetwork = \"ports\"\nports = [\"127.0.0.1:{port}:80\"]");
        let request = bench.request("ports-a", component("ports", &keys)).await;
        bench.clear(&["ports-a", "ports-b"]).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let error = bench.runtime.start(&id).await.unwrap_err();
        assert!(matches!(error, RuntimeError::PortTaken { .. }), "{error:?}");
        drop(listener);
        bench.runtime.start(&id).await.unwrap();
        let request = bench.request("ports-b", component("ports", &keys)).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let error = bench.runtime.start(&id).await.unwrap_err();
        assert!(matches!(error, RuntimeError::PortTaken { .. }), "{error:?}");
        bench.clear(&["ports-a", "ports-b"]).await;
        assert!(bench.runtime.remove_network("ports").await.unwrap());
    });
}
