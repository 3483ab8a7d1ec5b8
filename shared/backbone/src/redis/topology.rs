//! The map from slots to nodes.

use std::sync::Arc;

use super::{node::Node, url::Address};

/// The primaries, the nodes at which they are followed, and the slots that each primary holds.
#[derive(Default)]
pub(super) struct Map {
    primaries: Vec<Arc<Node>>,
    /// For each primary the node at which its logs are followed: the primary itself, or one of its replicas.
    tails: Vec<Arc<Node>>,
    /// First and last slot of each range, with the index of its primary. `None` if one primary holds everything.
    ranges: Option<Vec<(u16, u16, usize)>>,
}

impl Map {
    pub(super) fn new(
        primaries: Vec<Arc<Node>>,
        tails: Vec<Arc<Node>>,
        ranges: Option<Vec<(u16, u16, usize)>>,
    ) -> Self {
        Self { primaries, tails, ranges }
    }

    pub(super) fn primaries(&self) -> &[Arc<Node>] {
        &self.primaries
    }

    /// Returns the nodes at which logs are followed.
    pub(super) fn tails(&self) -> &[Arc<Node>] {
        &self.tails
    }

    /// Returns true if the map has no primaries, so it was never resolved.
    pub(super) fn is_empty(&self) -> bool {
        self.primaries.is_empty()
    }

    /// Returns the primary that holds a slot.
    pub(super) fn primary_at(&self, slot: u16) -> Option<Arc<Node>> {
        self.primaries.get(self.index_of(slot)?).map(Arc::clone)
    }

    /// Returns the node at which the logs of a slot are followed.
    pub(super) fn tail_at(&self, slot: u16) -> Option<Arc<Node>> {
        self.tails.get(self.index_of(slot)?).map(Arc::clone)
    }

    /// Returns the partition of a slot: the index of its primary.
    pub(super) fn index_of(&self, slot: u16) -> Option<usize> {
        let Some(ranges) = &self.ranges else { return Some(0) };
        ranges.iter().find(|(first, last, _)| (*first..=*last).contains(&slot)).map(|&(_, _, index)| index)
    }

    /// Returns the node at which the logs of `primary` are followed.
    pub(super) fn tail_of(&self, primary: &Node) -> Option<&Arc<Node>> {
        let index = self.primaries.iter().position(|node| node.address == primary.address)?;
        self.tails.get(index)
    }

    /// Returns true if both maps have the same slots and share all their nodes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |one: &[Arc<Node>], other: &[Arc<Node>]| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        self.ranges == other.ranges
            && same(&self.primaries, &other.primaries)
            && same(&self.tails, &other.tails)
    }

    /// Logs how this map differs from the `old` one, which it replaces.
    pub(super) fn log_difference(&self, old: &Self) {
        let addresses =
            |nodes: &[Arc<Node>]| -> Vec<Address> { nodes.iter().map(|node| node.address.clone()).collect() };
        let (primaries, tails) = (addresses(&self.primaries), addresses(&self.tails));
        let moved = old.ranges != self.ranges || addresses(&old.primaries) != primaries;
        let tailed_elsewhere = addresses(&old.tails) != tails;
        if moved {
            tracing::warn!(?primaries, "the primaries or their slots have changed");
        }
        if tailed_elsewhere && tails != primaries {
            tracing::info!(?tails, "these are tailed from now on");
        } else if tailed_elsewhere && !moved {
            tracing::warn!(?tails, "no replica keeps up: the primaries are tailed");
        }
        if !moved && !tailed_elsewhere {
            tracing::info!("a call timed out: the connections to its node are replaced");
        }
    }
}
