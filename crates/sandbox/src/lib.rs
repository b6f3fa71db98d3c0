//! The whole pipeline on loopback, with real parts, for newcomers and for tests.
//!
//! A [`World`] is what can be shared: the daemons' programs, LocalStack and Postgres. A [`Sandbox`] is one stream in it, with a posts API,
//! a bucket, a queue, a database and two daemons of its own; there can be many.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use sandbox::{Progress, Sandbox, Setup, World};
//!
//! let world = World::start(&Progress::default()).await?;
//! let sandbox = Sandbox::start(&world, Setup { posts: 5, ..Setup::default() }).await?;
//! sandbox.settled(Duration::from_secs(10)).await?;
//! sandbox.api.change(|posts| posts.delete(3));
//! sandbox.importer.kill();
//! # Ok(())
//! # }
//! ```
//!
//! Errors are `anyhow` throughout: nobody decides anything by them, they all end before a person's eyes.

// A world: processes, and what they are made of.
mod command;
mod guard;
mod localstack;
mod port;
mod postgres;
mod postgres_programs;
mod programs;
mod progress;
mod tail;
mod venv;
mod world;

// A stream in it.
mod compare;
mod daemon;
mod event;
mod fault;
mod look;
mod posts;
mod posts_api;
pub mod proxy;
mod sandbox;
mod settings;

// The commands.
pub mod bench;
pub mod drills;
mod env_file;
mod own_api;
pub mod page;
pub mod run;
mod say;
mod show;
pub mod soak;

pub use compare::{Row, differences};
pub use daemon::{Daemon, Signal};
pub use event::{Event, Events};
pub use localstack::LocalStack;
pub use postgres::{Backup, Postgres};
pub use posts::{Post, Posts};
pub use posts_api::PostsApi;
pub use programs::{Place, Programs};
pub use progress::Progress;
pub use sandbox::{Program, Sandbox, Setup};
pub use settings::Settings;
pub use world::{StartTimes, World};
