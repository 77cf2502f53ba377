//! What runs is kept running.

use super::*;
use crate::client::{ClientMetrics, Http, PushLeases};
use crate::health::Health;
use crate::net::routes::Routes;
use crate::published::Published;
use crate::relay::Feeds;
use crate::steps::definition;
use crate::steps::reactors::Identity;
use crate::telemetry::Metrics;
use mmids_core::workflows::{WorkflowRequest, WorkflowRequestOperation};

async fn engine(health: &Health) -> Engine {
    crate::client::install_crypto_provider();
    let metrics = Arc::new(Metrics::new().unwrap());
    let node: crate::ids::NodeId = "n".parse().unwrap();
    let (published, client_metrics) =
        (Published::new(), ClientMetrics::register(metrics.registry()).unwrap());
    let parts = Parts {
        identity: Identity {
            node: node.clone(),
            origin: None,
            pulled_at: crate::steps::reactors::PulledAt { rtmp: 1, rtmps: None },
            native_pull: true,
        },
        default_port: 1,
        routes: Routes::new(),
        feeds: Feeds::new(metrics.clone()),
        push_leases: PushLeases::alone(published.clone(), client_metrics.clone()),
        published,
        relay: crate::relay::Settings::default(),
        pull: crate::net::pull::Settings::new(node),
        push: crate::net::push::Settings::default(),
        hls: crate::net::hls::HlsOutputs::new(),
        rtmp: crate::rtmp::Limits::default(),
        ffmpeg: crate::ffmpeg::Settings::default(),
        http: Http::new().unwrap(),
        client_metrics,
        metrics,
        reactor_back: Arc::new(|| {}),
        health: health.clone(),
        tasks: TaskTracker::new(),
    };
    let text =
        "workflow w {\n rtmp_receive rtmp_app=in stream_key=*\n rtmp_watch rtmp_app=out stream_key=*\n}\n";
    let config = definition::parse("f", text, &Default::default()).unwrap();
    Engine::start(parts, vec![("f".to_owned(), config)]).await.unwrap()
}

/// Ends a workflow's task behind the manager's back, as a fault in it would.
async fn break_off(engine: &Engine) {
    let running = engine.directory.channel("w").await;
    let operation = WorkflowRequestOperation::StopWorkflow;
    running.send(WorkflowRequest { request_id: String::new(), operation }).unwrap();
    running.closed().await;
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(20), future).await;
    done.unwrap_or_else(|_| panic!("waited in vain for: {what}"))
}

#[tokio::test]
async fn a_workflow_that_ends_by_itself_runs_again_and_a_stop_is_no_fault() {
    let health = Health::new();
    let engine = engine(&health).await;
    assert!(health.is_ready(), "{:?}", health.reasons());
    for _ in 0..3 {
        soon("its end", break_off(&engine)).await;
        soon("its return", async {
            while engine.state(&Arc::new("w".to_owned())).await.is_none() || !health.is_ready() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert!(soon("the stop", engine.stop(Duration::from_secs(10))).await);
    assert!(health.is_ready() && !engine.failed().is_cancelled());
}

#[tokio::test]
async fn a_workflow_that_ends_again_and_again_ends_the_process() {
    let health = Health::new();
    let engine = engine(&health).await;
    soon("the end", async {
        while !engine.failed().is_cancelled() {
            tokio::select! {
                () = break_off(&engine) => {}
                () = engine.failed().cancelled() => {}
            }
        }
    })
    .await;
    assert_eq!(health.reasons(), ["workflows: not running: w"]);
}

#[tokio::test]
async fn a_workflow_that_starts_again_with_an_error_ends_the_process() {
    let (manager, mut requests) = unbounded_channel();
    let (health, failed) = (Health::new(), CancellationToken::new());
    let definition = mmids_core::workflows::definitions::WorkflowDefinition {
        name: Arc::new("w".to_owned()),
        routed_by_reactor: false,
        steps: Vec::new(),
    };
    let mut keeper = Keeper::new([definition], manager, &health, failed.clone());
    keeper.ended("w");
    assert!(keeper.is_down("w") && requests.try_recv().is_ok(), "it is started again");
    let message = "its place is taken".to_owned();
    keeper.started("w", Some(WorkflowStatus::Error { failed_step_id: 1, message }));
    assert!(failed.is_cancelled());
    assert_eq!(health.reasons(), ["workflows: not running: w"]);
}
