//! What lists are narrowed by: a page reads about what is on it, and not every intent of its owner.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, btree_set},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use mesh_intent::types;

use crate::domain::Row;

/// What of one intent lists are narrowed by, beside its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub(super) row: Row,
    /// Its place in the table of types; `None` for a label of no type.
    pub(super) kind: Option<usize>,
}

/// The place of a label in the table of types.
pub(super) fn kind_of(label: &str) -> Option<usize> {
    let found = types::of_label(label)?;
    types::TYPES.iter().position(|kind| kind.label == found.label)
}

/// What a list asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Rows; all if `None`.
    pub(super) rows: Option<Vec<Row>>,
    /// Place of the type; all if `None`, those of no type if `Some(None)`.
    pub(super) kind: Option<Option<usize>>,
    /// Object; all if empty.
    pub(super) object: String,
}

impl Wanted {
    fn fits(&self, class: Class) -> bool {
        self.rows.as_ref().is_none_or(|rows| rows.contains(&class.row))
            && self.kind.is_none_or(|kind| kind == class.kind)
    }
}

/// The intents of one owner by what lists are narrowed by.
#[derive(Debug, Default)]
pub(super) struct Index {
    classes: BTreeMap<Class, BTreeSet<Arc<str>>>,
    /// By object instance, named or made.
    objects: HashMap<Arc<str>, BTreeMap<Arc<str>, Class>>,
}

/// What the index holds of one intent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Noted {
    pub(super) class: Option<Class>,
    /// Without repetition.
    pub(super) objects: Vec<Arc<str>>,
}

impl Index {
    /// Notes an intent as it is now in place of what it was.
    pub(super) fn note(&mut self, id: &Arc<str>, was: &Noted, now: &Noted) {
        if was.class != now.class {
            if let Some(class) = was.class
                && let Some(ids) = self.classes.get_mut(&class)
            {
                ids.remove(id);
                if ids.is_empty() {
                    self.classes.remove(&class);
                }
            }
            if let Some(class) = now.class {
                self.classes.entry(class).or_default().insert(id.clone());
            }
        }
        for object in was.objects.iter().filter(|object| !now.objects.contains(object)) {
            if let Some(ids) = self.objects.get_mut(object) {
                ids.remove(id);
                if ids.is_empty() {
                    self.objects.remove(object);
                }
            }
        }
        if let Some(class) = now.class
            && was != now
        {
            for object in &now.objects {
                self.objects.entry(object.clone()).or_default().insert(id.clone(), class);
            }
        }
    }

    /// The intents that are wanted and come after an id, in their order.
    pub(super) fn after<'a>(&'a self, wanted: &Wanted, after: &str) -> Box<dyn Iterator<Item = &'a Arc<str>> + 'a> {
        if !wanted.object.is_empty() {
            let Some(ids) = self.objects.get(wanted.object.as_str()) else { return Box::new(std::iter::empty()) };
            let wanted = wanted.clone();
            let later = ids.range::<str, _>((Excluded(after), Unbounded));
            return Box::new(later.filter(move |(_, class)| wanted.fits(**class)).map(|(id, _)| id));
        }
        let fitting = self.classes.iter().filter(|(class, _)| wanted.fits(**class));
        Box::new(Merge::new(fitting.map(|(_, ids)| ids.range::<str, _>((Excluded(after), Unbounded)))))
    }
}

/// Several sets in the order of one; no two have an id in common.
struct Merge<'a> {
    sets: Vec<btree_set::Range<'a, Arc<str>>>,
    next: BinaryHeap<Reverse<(&'a Arc<str>, usize)>>,
}

impl<'a> Merge<'a> {
    fn new(sets: impl Iterator<Item = btree_set::Range<'a, Arc<str>>>) -> Self {
        let mut sets: Vec<_> = sets.collect();
        let firsts = sets.iter_mut().enumerate().filter_map(|(n, set)| Some(Reverse((set.next()?, n))));
        Self { next: firsts.collect(), sets }
    }
}

impl<'a> Iterator for Merge<'a> {
    type Item = &'a Arc<str>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((id, n)) = self.next.pop()?;
        if let Some(following) = self.sets.get_mut(n).and_then(Iterator::next) {
            self.next.push(Reverse((following, n)));
        }
        Some(id)
    }
}
