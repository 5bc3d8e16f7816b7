//! Who has a connection to the admin side. Pure but for the mark that ends a connection; `now` goes in.
//!
//! Connections cost descriptors, so there are so many at most, and so many from one address. Whoever comes when there is no place
//! left gets that of the connection that has waited longest for a request: idle ones, forgotten or hostile, never keep
//! anybody out. While every connection is being answered a few more get a place for a single request, so that
//! somebody who asks for the health of the process is not kept waiting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// Connections at a time.
pub(super) const PLACES: usize = 256;
/// Of these for one address.
pub(super) const PLACES_A_PEER: usize = 64;
/// Beside them, while all are being answered.
pub(super) const RESERVE: usize = 16;

/// The places that are taken, by the order in which they were.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    taken: Arc<Mutex<BTreeMap<u64, Taken>>>,
}

#[derive(Debug)]
struct Taken {
    peer: IpAddr,
    /// Since when it waits for a request; `None` while one is answered.
    idle_since: Option<Instant>,
    end: CancellationToken,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    number: u64,
    /// Somebody else needs it.
    pub(super) end: CancellationToken,
    /// It is for a single request.
    pub(super) is_reserve: bool,
}

impl Places {
    /// A place for a connection from `peer`; `None` if every one of its own, or of all, is being answered.
    pub(super) fn take(&self, peer: IpAddr, now: Instant) -> Option<Place> {
        let peer = peer.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full_for = taken.values().filter(|other| other.peer == peer).count() >= PLACES_A_PEER;
        let is_full = taken.len() >= PLACES;
        let mut is_reserve = false;
        if is_full_for || is_full {
            let may_go = |other: &Taken| !is_full_for || other.peer == peer;
            match longest_idle(&taken, may_go) {
                Some(number) => {
                    if let Some(gone) = taken.remove(&number) {
                        gone.end.cancel();
                    }
                }
                None if is_full_for || taken.len() >= PLACES + RESERVE => return None,
                None => is_reserve = true,
            }
        }
        let number = taken.last_key_value().map_or(0, |(last, _)| last + 1);
        let end = CancellationToken::new();
        taken.insert(number, Taken { peer, idle_since: Some(now), end: end.clone() });
        Some(Place { places: self.clone(), number, end, is_reserve })
    }

    /// Ends the connection that has waited longest for a request, if there is one.
    pub(super) fn give_way(&self) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = longest_idle(&taken, |_| true).and_then(|number| taken.remove(&number));
        gone.is_some_and(|gone| {
            gone.end.cancel();
            true
        })
    }

    fn mark(&self, number: u64, idle_since: Option<Instant>) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = taken.get_mut(&number) {
            taken.idle_since = idle_since;
        }
    }
}

fn longest_idle(taken: &BTreeMap<u64, Taken>, may_go: impl Fn(&Taken) -> bool) -> Option<u64> {
    let idle = taken.iter().filter(|(_, taken)| may_go(taken));
    let idle = idle.filter_map(|(number, taken)| Some((taken.idle_since?, *number)));
    idle.min().map(|(_, number)| number)
}

impl Place {
    /// A request has come.
    pub(super) fn busy(&self) {
        self.places.mark(self.number, None);
    }

    /// It is answered.
    pub(super) fn idle(&self, now: Instant) {
        self.places.mark(self.number, Some(now));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(number: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()])
    }

    #[test]
    fn the_one_that_has_waited_longest_gives_way() {
        let (places, began) = (Places::default(), Instant::now());
        let at = |secs| began + Duration::from_secs(secs);
        let all: Vec<Place> = (0..PLACES).map(|n| places.take(peer(n % 200), at(0)).unwrap()).collect();
        all[0].busy();
        all[0].idle(at(5));
        all[1].busy();
        let next = places.take(peer(201), at(9)).unwrap();
        let gone: Vec<usize> = (0..PLACES).filter(|n| all[*n].end.is_cancelled()).collect();
        assert_eq!((gone, next.is_reserve), (vec![2], false), "not the one that was answered lately, nor the busy one");
        drop(all);
        assert_eq!(places.taken.lock().unwrap().len(), 1, "the places are given back");
    }

    #[test]
    fn one_peer_has_so_many_and_pushes_out_its_own() {
        let (places, now) = (Places::default(), Instant::now());
        let other = places.take(peer(1), now).unwrap();
        let mapped = "::ffff:10.0.0.2".parse().unwrap();
        let all: Vec<Place> = (0..PLACES_A_PEER)
            .map(|n| places.take(if n % 2 == 0 { peer(2) } else { mapped }, now + Duration::from_secs(1)).unwrap())
            .collect();
        let _next = places.take(peer(2), now + Duration::from_secs(2)).unwrap();
        assert!(all[0].end.is_cancelled() && !other.end.is_cancelled());
        all.iter().for_each(Place::busy);
        let more: Vec<Option<Place>> = (0..2).map(|_| places.take(peer(2), now)).collect();
        assert!(more[0].is_some() && more[1].is_some(), "the idle one gives way to another");
        more.iter().flatten().for_each(Place::busy);
        assert!(places.take(peer(2), now).is_none(), "all of its own are busy");
    }

    #[test]
    fn while_all_are_answered_a_few_more_get_a_place_for_one_request() {
        let (places, now) = (Places::default(), Instant::now());
        let take = |n: usize| places.take(peer(n % 200), now).inspect(Place::busy);
        let all: Vec<Place> = (0..PLACES).filter_map(take).collect();
        assert_eq!(all.len(), PLACES);
        let reserve: Vec<Place> = (0..RESERVE).filter_map(take).collect();
        assert!(reserve.len() == RESERVE && reserve.iter().all(|place| place.is_reserve));
        assert!(take(0).is_none() && !places.give_way());
        all[7].idle(now);
        assert!(places.give_way() && all[7].end.is_cancelled());
    }
}
