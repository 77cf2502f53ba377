//! Everything that goes wrong in operation, done to real processes; docs/OPERATING.md tells the same from an operator's
//! side. Each test prints the figure that it measured, in lines that begin with `measured`.
//!
//! | what must hold | test |
//! |---|---|
//! | publisher moves from one ingest node to another | `moves::viewers_follow_a_publisher_that_moves`, `moves::a_picture_that_moves_stays_decodable` |
//! | `kill -9` of the ingest node | `moves::viewers_outlive_the_death_of_an_ingest_node`, `moves::a_picture_that_moves_stays_decodable` |
//! | reactor away for long | `registry::nobody_who_watches_notices_that_the_reactor_is_away` |
//! | reactor restarted with empty memory | `registry::a_reactor_that_lost_its_memory_never_denies_a_live_stream` |
//! | 2,000 viewers at once on a cold stream | `herd::two_thousand_viewers_cost_one_lookup_and_one_pull` |
//! | one key on two nodes | `registry::the_newest_publisher_takes_over_once`, `registry::the_first_publisher_keeps_its_name` |
//! | an hour of flapping | `viewers::flapping_leaves_nothing_behind` |
//! | a flood of 2-byte messages beside other streams | `flood::a_flood_of_tiny_messages_costs_other_streams_nothing`, `flood::a_pulled_flood_of_tiny_messages_costs_other_streams_nothing` |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests may panic

#[path = "../common/mod.rs"]
mod common;

mod drain;
mod flood;
mod herd;
mod limits;
mod moves;
mod network;
mod nodes;
mod pulls;
mod registry;
mod stores;
mod viewers;
