//! The step `rtmp_receive`: lets publishers in and announces their streams to its workflow. Their media goes from the
//! connection's feed to whoever attaches to it, and never through this step.
//!
//! With `reactor=NAME` the reactor decides whether a stream may be published, and keeps deciding: when another session
//! owns the name, this one's publisher is sent away. A name has one publisher on a node: the newest.

use super::announce::Announced;
use super::parameters::{ParameterError, Parameters};
use super::reactors::{Asker, Publishing, Reactors, Status, next_status};
use crate::ids::{Identity, SessionTag, StreamName};
use crate::net::routes::{Place, Publication, PublishRequest, PublishRoute, Refused, RouteGuard, Routes};
use crate::published::{Published, Registration};
use crate::relay::FeedRef;
use crate::telemetry::Seldom;
use futures::future::BoxFuture;
use mmids_core::workflows::definitions::WorkflowStepDefinition;
use mmids_core::workflows::steps::factory::StepGenerator;
use mmids_core::workflows::steps::{
    StepCreationResult, StepFutureResult, StepInputs, StepOutputs, StepStatus, WorkflowStep,
};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// The parameters the step knows.
pub const PARAMETERS: [&str; 7] =
    ["rtmp_app", "stream_key", "port", "rtmps", "allow_ips", "deny_ips", "reactor"];

/// Publishers that wait for the step to hear them: a thousand encoders that come back at once fit.
const REQUESTS: usize = 1024;

/// Makes `rtmp_receive` steps.
pub struct Generator {
    /// Where routes are added.
    pub routes: Arc<Routes>,
    /// Whom to ask.
    pub reactors: Arc<Reactors>,
    /// Where this node's publishers are listed.
    pub published: Arc<Published>,
    /// The port where none is named.
    pub default_port: u16,
}

/// Reads the parameters of a step.
pub fn parameters(definition: &WorkflowStepDefinition, default_port: u16) -> Result<Place, ParameterError> {
    Parameters(definition).place(default_port)
}

impl StepGenerator for Generator {
    fn generate(&self, definition: WorkflowStepDefinition) -> StepCreationResult {
        let place = parameters(&definition, self.default_port)?;
        let reactor = Parameters(&definition).get("reactor").map(str::to_owned);
        let (requests, waiting) = mpsc::channel(REQUESTS);
        let route = self.routes.add_publish(place, PublishRoute { requests })?;
        let stop = CancellationToken::new();
        let futures = vec![wait_request(waiting, stop.clone())];
        let step = ReceiveStep {
            definition,
            status: StepStatus::Active,
            reactor,
            reactors: self.reactors.clone(),
            published: self.published.clone(),
            route: Some(route),
            stop,
            next: 0,
            publishers: HashMap::new(),
            by_name: HashMap::new(),
        };
        Ok((Box::new(step), futures))
    }
}

struct ReceiveStep {
    definition: WorkflowStepDefinition,
    status: StepStatus,
    reactor: Option<String>,
    reactors: Arc<Reactors>,
    published: Arc<Published>,
    route: Option<RouteGuard>,
    stop: CancellationToken,
    next: u64,
    publishers: HashMap<u64, Publisher>,
    by_name: HashMap<StreamName, u64>,
}

/// One publish, asked for or running.
struct Publisher {
    name: StreamName,
    identity: Option<Identity>,
    session: SessionTag,
    /// Given by a reactor.
    epoch: Option<u64>,
    /// Ends the waiting for the reactor's word, and with it the interest.
    stop: CancellationToken,
    /// In the list of the node's publishers, with the session that the reactor knows.
    registration: Registration,
    state: State,
}

impl Publisher {
    /// Says that a reactor knows it now, once.
    fn registered(&mut self, epoch: u64) {
        static REGISTERED: Seldom = Seldom::events();
        if self.epoch.replace(epoch) == Some(epoch) {
            return;
        }
        if let Some(held_back) = REGISTERED.pass() {
            tracing::info!(stream = %self.name, session = %self.session, epoch, held_back, "registered");
        }
    }
}

enum State {
    Asking { feed: FeedRef, reply: oneshot::Sender<Result<Publication, Refused>> },
    Running { announced: Announced, evict: oneshot::Sender<String> },
}

enum Woken {
    Request(Box<PublishRequest>, mpsc::Receiver<PublishRequest>),
    Answer { id: u64, status: Status, receiver: watch::Receiver<Status>, stop: CancellationToken },
    Evicted { id: u64, reason: String },
    Gone { id: u64 },
    Stopped,
}

impl StepFutureResult for Woken {}

type StepFuture = BoxFuture<'static, Box<dyn StepFutureResult>>;

fn wait_request(mut requests: mpsc::Receiver<PublishRequest>, stop: CancellationToken) -> StepFuture {
    Box::pin(async move {
        let woken = tokio::select! {
            () = stop.cancelled() => Woken::Stopped,
            request = requests.recv() => match request {
                Some(request) => Woken::Request(Box::new(request), requests),
                None => Woken::Stopped,
            },
        };
        Box::new(woken) as Box<dyn StepFutureResult>
    })
}

fn wait_answer(id: u64, mut receiver: watch::Receiver<Status>, stop: CancellationToken) -> StepFuture {
    Box::pin(async move {
        let woken = match next_status(&mut receiver, &stop).await {
            Some(status) => Woken::Answer { id, status, receiver, stop },
            None => Woken::Stopped,
        };
        Box::new(woken) as Box<dyn StepFutureResult>
    })
}

/// Waits for the publisher to leave, or to be sent away by the node.
fn wait_end(
    id: u64,
    gone: CancellationToken,
    evicted: oneshot::Receiver<String>,
    stop: CancellationToken,
) -> StepFuture {
    Box::pin(async move {
        let woken = tokio::select! {
            () = stop.cancelled() => Woken::Stopped,
            () = gone.cancelled() => Woken::Gone { id },
            reason = evicted => match reason {
                Ok(reason) => Woken::Evicted { id, reason },
                Err(_) => Woken::Stopped,
            },
        };
        Box::new(woken) as Box<dyn StepFutureResult>
    })
}

impl ReceiveStep {
    fn request(&mut self, request: PublishRequest, outputs: &mut StepOutputs) {
        let PublishRequest { name, session, identity, query, peer, feed, gone, reply, .. } = request;
        self.next += 1;
        let id = self.next;
        let (evict, evicted) = oneshot::channel();
        let stop = self.stop.child_token();
        let registration = self.published.register(&name, session, identity, evict);
        let state = State::Asking { feed, reply };
        let publisher = Publisher {
            name: name.clone(),
            identity,
            session: session.tag(),
            epoch: None,
            stop: stop.clone(),
            registration,
            state,
        };
        self.publishers.insert(id, publisher);
        outputs.futures.push(wait_end(id, gone, evicted, stop.clone()));
        match &self.reactor {
            None => {
                if let Some(publisher) = self.publishers.get(&id) {
                    publisher.registration.stands_alone();
                }
                self.accept(id, None, outputs);
            }
            Some(reactor) => {
                let mut receiver = self.reactors.follow(
                    reactor,
                    &name,
                    Asker::Publisher(Publishing { session, identity, query, peer: peer.ip() }),
                );
                receiver.mark_changed();
                outputs.futures.push(wait_answer(id, receiver, stop));
            }
        }
    }

    /// Lets a publisher in, and sends an older one of the same name away: an encoder that lost its connection comes back
    /// long before the old one is found dead. Where no reactor has decided, by giving it an epoch, somebody else does not get
    /// in while the name is taken.
    fn accept(&mut self, id: u64, epoch: Option<u64>, outputs: &mut StepOutputs) {
        if epoch.is_none() && self.is_foreign(id) {
            return self.end(id, Some("this stream is already published by somebody else"), outputs);
        }
        let Some(mut publisher) = self.publishers.remove(&id) else { return };
        let State::Asking { feed, reply } = publisher.state else {
            self.publishers.insert(id, publisher);
            return;
        };
        publisher.registration.accepted();
        if let Some(old) = self.by_name.insert(publisher.name.clone(), id) {
            self.end(old, Some("another publisher took over this stream"), outputs);
        }
        let (announced, begin) = Announced::begin(feed, publisher.name.as_str());
        outputs.media.push(begin);
        let (evict, evicted) = oneshot::channel();
        publisher.state = State::Running { announced, evict };
        self.publishers.insert(id, publisher);
        if reply.send(Ok(Publication { evicted })).is_err() {
            // It left at this moment.
            self.end(id, None, outputs);
        }
    }

    /// Whether a publisher that asks wants a name whose publisher is known to be somebody else.
    fn is_foreign(&self, id: u64) -> bool {
        let Some(asking) = self.publishers.get(&id) else { return false };
        let running = self.by_name.get(&asking.name).filter(|running| **running != id);
        let running = running.and_then(|running| self.publishers.get(running));
        running.is_some_and(|running| running.identity.is_some() && running.identity != asking.identity)
    }

    /// Ends a publish, whatever its state; with a reason its publisher is told and sent away. One that is gone already
    /// needs no telling.
    fn end(&mut self, id: u64, reason: Option<&str>, outputs: &mut StepOutputs) {
        let Some(publisher) = self.publishers.remove(&id) else { return };
        publisher.stop.cancel();
        if self.by_name.get(&publisher.name) == Some(&id) {
            self.by_name.remove(&publisher.name);
        }
        match (publisher.state, reason) {
            (State::Asking { reply, .. }, reason) => {
                let reason = reason.unwrap_or("the publisher left");
                drop(reply.send(Err(Refused(reason.to_owned()))));
            }
            (State::Running { announced, evict }, reason) => {
                if let Some(reason) = reason {
                    drop(evict.send(reason.to_owned()));
                }
                outputs.media.push(announced.end());
            }
        }
    }

    fn wake(&mut self, woken: Woken, outputs: &mut StepOutputs) {
        match woken {
            Woken::Request(request, requests) => {
                self.request(*request, outputs);
                outputs.futures.push(wait_request(requests, self.stop.clone()));
            }
            Woken::Answer { id, status, receiver, stop } => {
                match &status {
                    // Publishers are let in then.
                    Status::Asking | Status::Unknown => {}
                    &Status::Valid { epoch, .. } => {
                        if let (Some(epoch), Some(publisher)) = (epoch, self.publishers.get_mut(&id)) {
                            publisher.registration.set_epoch(epoch);
                            publisher.registered(epoch);
                        }
                        self.accept(id, epoch, outputs);
                    }
                    Status::Invalid(reason) => self.end(id, Some(reason), outputs),
                }
                if self.publishers.contains_key(&id) {
                    outputs.futures.push(wait_answer(id, receiver, stop));
                }
            }
            Woken::Evicted { id, reason } => self.end(id, Some(&reason), outputs),
            Woken::Gone { id } => self.end(id, None, outputs),
            Woken::Stopped => {}
        }
    }
}

impl WorkflowStep for ReceiveStep {
    fn get_status(&self) -> &StepStatus {
        &self.status
    }

    fn get_definition(&self) -> &WorkflowStepDefinition {
        &self.definition
    }

    fn execute(&mut self, inputs: &mut StepInputs, outputs: &mut StepOutputs) {
        outputs.media.append(&mut inputs.media);
        for notification in inputs.notifications.drain(..) {
            if let Ok(woken) = notification.downcast::<Woken>() {
                self.wake(*woken, outputs);
            }
        }
    }

    fn shutdown(&mut self) {
        self.status = StepStatus::Shutdown;
        self.route = None;
        self.stop.cancel();
        self.publishers.clear();
    }
}

impl Drop for ReceiveStep {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Feeds;
    use crate::telemetry::Metrics;
    use mmids_core::workflows::definitions::WorkflowStepType;

    #[tokio::test]
    async fn a_publisher_that_leaves_as_it_is_let_in_is_not_kept() {
        let (manager, _requests) = mpsc::unbounded_channel();
        let identity = super::super::reactors::Identity {
            node: "n".parse().unwrap(),
            origin: None,
            pulled_at: super::super::reactors::PulledAt { rtmp: 1, rtmps: None },
            native_pull: true,
        };
        let (routes, published) = (Routes::new(), Published::new());
        let reactors = Reactors::new(
            identity,
            HashMap::new(),
            manager,
            Arc::new(crate::telemetry::Metrics::new().unwrap()),
        );
        let generator =
            Generator { routes: routes.clone(), reactors, published: published.clone(), default_port: 1 };
        let parameters = [("rtmp_app", "live"), ("stream_key", "*")];
        let definition = WorkflowStepDefinition {
            step_type: WorkflowStepType("rtmp_receive".to_owned()),
            parameters: parameters.map(|(key, value)| (key.to_owned(), Some(value.to_owned()))).into(),
        };
        let (mut step, futures) = generator.generate(definition).unwrap_or_else(|error| panic!("{error}"));
        let mut futures: futures::stream::FuturesUnordered<_> = futures.into_iter().collect();

        let name: StreamName = "x".parse().unwrap();
        let peer = "127.0.0.1:9".parse().unwrap();
        let route = routes.publish(1, "live", &name, peer).unwrap();
        let (reply, answer) = oneshot::channel();
        let gone = CancellationToken::new();
        let feed = Feeds::new(Arc::new(Metrics::new().unwrap())).begin(None);
        let request = PublishRequest {
            name,
            session: crate::ids::SessionId::random(),
            identity: None,
            query: None,
            peer,
            connection: 1,
            feed: feed.reference(),
            gone: gone.clone(),
            reply,
        };
        route.requests.send(request).await.unwrap();

        let mut let_in = false;
        let mut answer = Some(answer);
        while !let_in || !published.streams().is_empty() {
            let next = futures::StreamExt::next(&mut futures);
            let woken = tokio::time::timeout(std::time::Duration::from_secs(5), next).await;
            let woken = woken.expect("the publisher is kept for ever").expect("the step waits");
            let mut inputs = StepInputs::new();
            inputs.notifications.push(woken);
            let mut outputs = StepOutputs::new();
            step.execute(&mut inputs, &mut outputs);
            futures.extend(outputs.futures);
            if !published.streams().is_empty() && answer.is_some() {
                // It was let in, and its connection never reads the answer.
                let_in = true;
                answer = None;
                gone.cancel();
            }
        }
    }
}
