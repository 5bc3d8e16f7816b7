//! A request while it is answered, which may take several questions.

use tokio::sync::oneshot;

use super::{Found, Missing, Request, Wanted};
use crate::config::Numbers;

/// Which row of which request.
pub(super) type Place = (usize, usize);

/// How many of these answers count, at least those of the first request. One that got no room because of others before it is
/// asked again, with all of its rows.
pub(super) fn complete(places: &[Place], found: &[Result<Found, Missing>]) -> usize {
    let first = places.first().map(|(request, _)| *request);
    let lacks = |found: &Result<Found, Missing>| found.as_ref().is_ok_and(|values| values.iter().any(Option::is_none));
    let again = places.iter().zip(found).find(|((request, _), found)| Some(*request) != first && lacks(found));
    let again = again.map(|((request, _), _)| *request);
    places.iter().position(|(request, _)| Some(*request) == again).unwrap_or(places.len())
}

/// A request that is not answered whole.
pub(super) struct Open {
    pub(super) rows: Vec<Wanted>,
    pub(super) numbers: Numbers,
    found: Vec<Option<Result<Found, Missing>>>,
    left: usize,
    answer: Option<oneshot::Sender<Vec<Result<Found, Missing>>>>,
}

impl Open {
    pub(super) fn new(request: Request) -> Self {
        let Request { rows, numbers, answer } = request;
        let (found, left) = (rows.iter().map(|_| None).collect(), rows.len());
        Self { rows, numbers, found, left, answer: Some(answer) }
    }

    /// Whether it is not answered and somebody waits for that.
    pub(super) fn is_awaited(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    /// The rows that have no answer.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (usize, &Wanted)> {
        let rows = self.rows.iter().zip(&self.found).enumerate();
        rows.filter(|(_, (_, found))| found.is_none()).map(|(place, (row, _))| (place, row))
    }

    /// What was found of a row; with the last one the request is answered.
    pub(super) fn set(&mut self, row: usize, found: Result<Found, Missing>) {
        let Some(place) = self.found.get_mut(row) else { return };
        if place.replace(found).is_none() {
            self.left -= 1;
        }
        if self.left == 0
            && let Some(answer) = self.answer.take()
        {
            // Nobody may wait any more.
            drop(answer.send(self.found.drain(..).flatten().collect()));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn whoever_found_no_room_beside_others_is_asked_again() {
        let (whole, lacks) = (|| Ok(vec![Some(Bytes::new())]), || Ok(vec![None]));
        let places = [(0, 0), (0, 1), (2, 0), (2, 1), (3, 0)];
        let all = |found: [Result<Found, Missing>; 5]| complete(&places, &found);
        assert_eq!(all([whole(), whole(), whole(), whole(), whole()]), 5);
        assert_eq!(all([lacks(), lacks(), whole(), Err(Missing::Row), whole()]), 5, "the first had all the room");
        assert_eq!(all([whole(), whole(), whole(), lacks(), lacks()]), 2);
        assert_eq!(all([whole(), lacks(), whole(), whole(), lacks()]), 4);
        assert_eq!(complete(&[], &[]), 0);
    }
}
