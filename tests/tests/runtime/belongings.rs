//! Networks, volumes and images.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use mcp_agent::runtime::{KeepTag, PullProgress, Runtime, RuntimeError};
use mcp_tests::engine::{Lane, wait};
use mcp_tests::lanes;
use mcp_tests::registry::Registry;

use crate::bench::{Bench, PAUSE, component};

lanes!(
    networks_and_volumes_are_made_once_and_removed_when_free,
    image_is_pulled_with_its_digest,
    kept_image_survives_the_loss_of_its_tag,
);

fn networks_and_volumes_are_made_once_and_removed_when_free(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let runtime = &bench.runtime;
        let labels = BTreeMap::from([("mcp.service".to_owned(), "once".to_owned())]);
        for _ in 0..2 {
            bench.clear(&["once-web"]).await;
            runtime.remove_network("once").await.unwrap();
            runtime.remove_volume("once_data").await.unwrap();
        }
        assert!(runtime.ensure_network("once", &labels).await.unwrap());
        assert!(!runtime.ensure_network("once", &labels).await.unwrap());
        assert!(runtime.ensure_volume("once_data", &labels).await.unwrap());
        assert!(!runtime.ensure_volume("once_data", &labels).await.unwrap());
        assert_eq!(
            runtime.networks("mcp.service", "once").await.unwrap(),
            ["once"]
        );
        assert_eq!(
            runtime.volumes("mcp.service", "once").await.unwrap(),
            ["once_data"]
        );
        assert!(
            runtime
                .networks("mcp.service", "other")
                .await
                .unwrap()
                .is_empty()
        );
        assert!(
            runtime
                .volumes("mcp.service", "other")
                .await
                .unwrap()
                .is_empty()
        );
        let keys = format!("{PAUSE}\nvolumes = [\"data:/data\"]");
        let request = bench.request("once-web", component("once", &keys)).await;
        let live = bench.run(&request).await;
        bench.inside(&live.id, "echo kept > /data/file").await;
        assert!(!runtime.remove_network("once").await.unwrap());
        assert!(runtime.remove_volume("once_data").await.is_err());
        runtime
            .stop(&live.id, Duration::from_secs(5))
            .await
            .unwrap();
        assert!(!runtime.remove_network("once").await.unwrap());
        // A container's removal leaves its named volumes.
        let live = bench.run(&request).await;
        assert_eq!(bench.inside(&live.id, "cat /data/file").await, "kept");
        bench.clear(&["once-web"]).await;
        assert!(runtime.remove_network("once").await.unwrap());
        assert!(!runtime.remove_network("once").await.unwrap());
        runtime.remove_volume("once_data").await.unwrap();
        runtime.remove_volume("once_data").await.unwrap();
    });
}

fn image_is_pulled_with_its_digest(lane: Lane) {
    let bench = Bench::new(lane);
    let registry = Registry::start().unwrap();
    // Nothing of it may be there before, or nothing is transferred.
    let source = "localhost/mcp-test/pushed:v1";
    bench
        .engine
        .import_version(source, "pushed", "busybox", &[])
        .unwrap();
    let name = registry.push(bench.engine, source, "pulled:v2").unwrap();
    bench.engine.cli(&["rmi", source]).unwrap();
    wait(async {
        let bench = Bench::new(lane);
        let runtime = &bench.runtime;
        let image = name.parse().unwrap();
        assert_eq!(runtime.image(&image).await.unwrap(), None);
        let progress = Mutex::new(Vec::<PullProgress>::new());
        let note = |step| progress.lock().unwrap().push(step);
        let pulled = runtime.pull(&image, &note).await.unwrap();
        let digest = pulled.digest.unwrap();
        assert_eq!(runtime.image(&image).await.unwrap().unwrap().id, pulled.id);
        // Podman 4.3 tells of layers and not of bytes.
        if lane == Lane::Docker {
            let last = *progress.lock().unwrap().last().unwrap();
            assert!(
                last.total_bytes > 0 && last.current_bytes == last.total_bytes,
                "{last:?}"
            );
        }
        let again = runtime.pull(&image, &note).await.unwrap();
        assert_eq!(again.id, pulled.id);

        let by_digest = format!("{}@{digest}", image.repository()).parse().unwrap();
        let by_digest = runtime.pull(&by_digest, &note).await.unwrap();
        assert_eq!(
            (by_digest.id, by_digest.digest),
            (pulled.id.clone(), Some(digest))
        );

        for wrong in [
            registry.image("absent:v1"),
            "127.0.0.1:1/none:v1".to_owned(),
        ] {
            let error = runtime
                .pull(&wrong.parse().unwrap(), &note)
                .await
                .unwrap_err();
            assert!(
                matches!(&error, RuntimeError::Pull { image, .. } if *image == wrong),
                "{error:?}"
            );
        }
        bench.engine.cli(&["rmi", "--force", &name]).unwrap();
    });
}

fn kept_image_survives_the_loss_of_its_tag(lane: Lane) {
    let bench = Bench::new(lane);
    let name = "localhost/mcp-test/kept:v1";
    bench
        .engine
        .import_version(name, "kept", "busybox", &[])
        .unwrap();
    wait(async {
        let bench = Bench::new(lane);
        let runtime = &bench.runtime;
        let image = runtime
            .image(&name.parse().unwrap())
            .await
            .unwrap()
            .unwrap()
            .id;
        let keep = |tag: &str| KeepTag {
            repository: "rift/kept/web".to_owned(),
            tag: tag.to_owned(),
        };
        runtime.tag(&image, &keep("one")).await.unwrap();
        runtime.tag(&image, &keep("one")).await.unwrap();
        runtime.tag(&image, &keep("two")).await.unwrap();
        runtime.untag(&keep("two")).await.unwrap();
        runtime.untag(&keep("two")).await.unwrap();
        bench.engine.cli(&["rmi", name]).unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());
        bench.engine.cli(&["image", "prune", "--force"]).unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());

        // Its last name stays as long as a container uses it, stopped or not.
        let spec = component("kept", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("kept-web", spec).await;
        request.image = image.clone();
        let live = bench.run(&request).await;
        runtime.untag(&keep("one")).await.unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());
        runtime
            .stop(&live.id, Duration::from_secs(5))
            .await
            .unwrap();
        runtime.untag(&keep("one")).await.unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());
        bench.clear(&["kept-web"]).await;
        runtime.untag(&keep("one")).await.unwrap();
        runtime.untag(&keep("one")).await.unwrap();
    });
}
