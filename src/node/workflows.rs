//! The workflows of this process as the admin port sees and changes them.

use crate::client::Urls;
use crate::config::Plan;
use crate::steps::Engine;
use crate::web::admin;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use std::sync::Arc;

/// See the module's head.
pub(super) struct Workflows {
    pub engine: Arc<Engine>,
    pub plan: Arc<Plan>,
    /// The port of steps that name none.
    pub rtmp_port: u16,
    pub urls: Urls,
}

impl admin::Workflows for Workflows {
    fn names(&self) -> BoxFuture<'static, Vec<String>> {
        let engine = self.engine.clone();
        async move { engine.workflows().await }.boxed()
    }

    fn one(&self, name: String) -> BoxFuture<'static, Option<Value>> {
        let engine = self.engine.clone();
        async move { engine.workflow(&name).await }.boxed()
    }

    fn put(&self, text: String) -> BoxFuture<'static, Result<Vec<String>, String>> {
        let engine = self.engine.clone();
        let config = self.plan.read_text(self.rtmp_port, &self.urls, &text);
        async move {
            let changed = match config {
                Ok(config) => engine.put(&config).await,
                Err(error) => Err(error),
            };
            changed.map(|changed| changed.started).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn remove(&self, name: String) -> BoxFuture<'static, bool> {
        let engine = self.engine.clone();
        async move { engine.remove(&name).await }.boxed()
    }
}
