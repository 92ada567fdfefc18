//! Scrub: reads and checks every fragment of every object, and rebuilds lost and rotten ones from the others.
//!
//! A fragment whose location is no longer registered moves to a free location of the bucket's policy. On request, data
//! keys under older master keys are wrapped again under the current one. Finally, fragments of no object are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use mesh_core::Key;
use mesh_proto::{
    Event as _, Timestamp,
    deciders::stream_object::Event as Fact,
    derived_id,
    object::{Layout, ObjectStored, ScrubClaimed, ScrubEnded},
};

use super::{
    Blob, Error, ObjectStore,
    commit::{Parts, blobs},
};
use crate::{
    backend,
    blob::fragment,
    domain::{
        objects::{Command, Version},
        scrubs::{self, Claim},
    },
    keys,
};

/// Findings in a report at most.
const FINDINGS_MAX: usize = 20;

/// The state of one fragment.
enum State {
    Good(u64),
    Missing,
    Rotten,
}

impl ObjectStore {
    /// Runs the requested scrubs, one after the other, until the process stops.
    pub(crate) async fn scrubs(self) -> anyhow::Result<()> {
        let stopping = self.mesh.stopping();
        let mut changes = self.view.changes();
        loop {
            let before = self.claimed_before();
            let waiting = self.view.read(|view| view.scrub_waiting(before));
            if let Some((owner, scrub)) = waiting {
                tokio::select! {
                    done = self.scrub_claimed(&owner, &scrub) => match done {
                        Ok(true) => continue,
                        Ok(false) => {}
                        Err(error) => {
                            let error = &error as &dyn std::error::Error;
                            tracing::warn!(scrub, error, "the scrub failed; it is tried again");
                        }
                    },
                    () = stopping.cancelled() => return Ok(()),
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                // A scrub that another gateway did not finish.
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    /// Claims older than this have expired.
    fn claimed_before(&self) -> Timestamp {
        let claim_ms = i64::try_from(self.config.scrub_claim_ms).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.mesh.now().as_millis().saturating_sub(claim_ms))
    }

    /// Claims a scrub, or renews the claim; `false` if another gateway runs it or it has ended.
    async fn claim(&self, owner: &str, scrub: &str) -> Result<bool, Error> {
        let key = Key::new([owner, scrub]);
        let last = self.last_fact(&key).await?;
        let sequence = last.as_ref().map_or(0, |(stored, _)| stored.sequence);
        let claimed = last.as_ref().map(|(stored, fact)| (fact, stored.time));
        let process = self.mesh.process().to_owned();
        if scrubs::claim(claimed, &process, self.claimed_before()) != Claim::Take {
            return Ok(false);
        }
        let id = derived_id(&["scrub-claimed", scrub, &process, &sequence.to_string()]);
        let fact = ScrubClaimed { owner: owner.into(), scrub: scrub.into(), process };
        self.write_fact(&key, &fact.into(), sequence, id).await
    }

    /// Claims a scrub and runs it; `false` if another gateway runs it.
    async fn scrub_claimed(&self, owner: &str, scrub: &str) -> Result<bool, Error> {
        if !self.claim(owner, scrub).await? {
            return Ok(false);
        }
        let id = (owner.to_owned(), scrub.to_owned());
        let wanted = self.view.read(|view| view.known.scrubs.get(&id).cloned()).unwrap_or_default();
        tracing::info!(scrub, repair = wanted.repair, "scrub begins");
        let mut report = self.scrub(owner, scrub, wanted.repair, wanted.rewrap).await?;
        (report.owner, report.scrub) = id;
        let key = Key::new([owner, scrub]);
        loop {
            let last = self.last_fact(&key).await?;
            if matches!(last, Some((_, Fact::ScrubEnded(_)))) {
                break;
            }
            let sequence = last.map_or(0, |(stored, _)| stored.sequence);
            let id = derived_id(&["scrub-ended", scrub, &sequence.to_string()]);
            if self.write_fact(&key, &report.clone().into(), sequence, id).await? {
                break;
            }
        }
        tracing::info!(scrub, objects = report.objects, repaired = report.repaired, lost = report.lost, "scrub ended");
        // Until the view has it, the scrub would seem to wait still.
        self.catch_up(ScrubEnded::STREAM).await?;
        Ok(true)
    }

    /// Scrubs an owner's objects.
    async fn scrub(&self, owner: &str, scrub: &str, repair: bool, rewrap: bool) -> Result<ScrubEnded, Error> {
        let begun = self.mesh.now();
        let mut claimed = begun;
        self.catch_up(ObjectStored::STREAM).await?;
        // Objects and uploads of one moment: a part that was stored before is one of either, whatever becomes of its
        // upload meanwhile.
        let (objects, uploads) = self.view.read(|view| {
            let listings = view.listings().flat_map(|(bucket, _, listing)| {
                listing.values().map(move |versions| (bucket.to_owned(), versions.latest.object.clone()))
            });
            let uploads = view.uploads.keys().chain(view.completing.keys()).cloned();
            (listings.collect::<Vec<(String, String)>>(), uploads.collect::<Vec<(String, String)>>())
        });
        let mut report = ScrubEnded::default();
        let mut live: BTreeSet<Bytes> = BTreeSet::new();
        // With their owners: a bucket may use the locations of another one.
        let mut locations: BTreeSet<(String, String)> = BTreeSet::new();
        if repair {
            for (bucket, upload) in uploads {
                let upload = self.upload(&Key::new([bucket, upload]), Parts::All).await?;
                live.extend(blobs(&upload.all()));
            }
        }
        for (bucket, object) in objects {
            // Some may have been deleted since.
            for version in self.versions(&Key::new([bucket, object])).await?.versions {
                let Version::Object(now) = version else { continue };
                live.extend(blobs(&now.parts));
                if now.owner != owner {
                    continue;
                }
                let of_layout = |layout: &Layout| -> Vec<(String, String)> {
                    layout.locations.iter().map(|location| (layout.owner.clone(), location.clone())).collect()
                };
                locations.extend(now.layout.iter().flat_map(of_layout));
                report.objects += 1;
                let name = format!("{}/{}", now.bucket, now.key);
                if let Err(error) = self.scrub_object(now, repair, rewrap, &mut report).await {
                    add_finding(&mut report, format!("{name}: {error}"));
                }
            }
            if self.mesh.now().millis_since(claimed) > (self.config.scrub_claim_ms / 3) as i64 {
                claimed = self.mesh.now();
                self.claim(owner, scrub).await?;
            }
        }
        if repair {
            let own = self.view.read(|view| view.known.locations_of(owner).into_keys().collect::<Vec<_>>());
            locations.extend(own.into_iter().map(|location| (owner.to_owned(), location)));
            let orphan_ms = i64::try_from(self.config.orphan_ms).unwrap_or(i64::MAX);
            // Before the moment of `live`: a fragment that was written since may be of an object that is not in it.
            let before = Timestamp::from_millis(begun.as_millis().saturating_sub(orphan_ms));
            for (owner, location) in &locations {
                report.orphans += self.remove_orphans(owner, location, &live, before).await;
            }
        }
        report.took_ms = self.mesh.now().millis_since(begun).max(0) as u64;
        Ok(report)
    }

    async fn scrub_object(
        &self,
        object: ObjectStored,
        repair: bool,
        rewrap: bool,
        report: &mut ScrubEnded,
    ) -> Result<(), Error> {
        let before = object.layout.clone().unwrap_or_default();
        let data_key = self.data_key(&before).inspect_err(|_| report.lost += 1)?;
        let moved = if repair { self.moved(&object, &before) } else { BTreeMap::new() };
        let mut after = before.clone();
        for (index, location) in &moved {
            after.locations[*index].clone_from(location);
        }
        let (before, after) = (Arc::new(before), Arc::new(after));
        let (mut lacking, mut lost) = (false, false);
        for part in &object.parts {
            let blob = Arc::new(self.blob(&before, &data_key, part)?);
            for extent in 0..blob.geometry.extents(part.size) {
                match self.scrub_extent(&blob, &after, extent, repair, report).await {
                    Ok(whole) => lacking |= !whole,
                    Err(error) => {
                        lost = true;
                        add_finding(report, format!("{}/{}: {error}", object.bucket, object.key));
                    }
                }
            }
        }
        if lost {
            report.lost += 1;
        } else if lacking {
            report.degraded += 1;
            add_finding(report, format!("{}/{}: lacks fragments", object.bucket, object.key));
        }
        // Every extent is in its new location before the fact says so.
        let relocated = !moved.is_empty() && !lost && !lacking;
        let mut layout = if relocated { (*after).clone() } else { (*before).clone() };
        let rewrapped = rewrap && layout.master_key != self.keys.masters.active();
        if rewrapped {
            let nonce = keys::random().map_err(|e| Error::Internal(e.to_string()))?;
            layout.wrapped_key = self.keys.masters.wrap(&data_key, &layout.key_id, nonce)?.into();
            layout.master_key = self.keys.masters.active().into();
        }
        if relocated || rewrapped {
            let reason = if relocated { "repaired" } else { "rewrapped" }.to_owned();
            let moved = ObjectStored { layout: Some(layout), ..object.clone() };
            let moved = Command::Move { before: object, after: moved, reason };
            // If the object was replaced in the meantime, the new one has new keys and places, and nothing is decided.
            if self.decide(&moved, None).await?.fact.is_some() && rewrapped {
                report.rewrapped += 1;
            }
        }
        Ok(())
    }

    /// New locations for fragments whose location is no longer registered: those of the bucket's policy that do not
    /// hold a fragment of the object yet.
    fn moved(&self, object: &ObjectStored, layout: &Layout) -> BTreeMap<usize, String> {
        let known = self.view.read(|view| view.known.locations_of(&layout.owner));
        let bucket = self.view.read(|view| view.known.buckets.get(&object.bucket).cloned());
        let wanted = bucket.and_then(|bucket| self.recipe(&bucket).ok()).map(|recipe| recipe.locations);
        let mut free = wanted.unwrap_or_default().into_iter().filter(|l| !layout.locations.contains(l));
        let gone = layout.locations.iter().enumerate().filter(|(_, location)| !known.contains_key(*location));
        gone.map_while(|(index, _)| Some((index, free.next()?))).collect()
    }

    /// Checks the fragments of an extent and writes bad ones again; returns whether all are good in the end.
    async fn scrub_extent(
        &self,
        blob: &Arc<Blob>,
        after: &Arc<Layout>,
        extent: u32,
        repair: bool,
        report: &mut ScrubEnded,
    ) -> Result<bool, Error> {
        let plain = blob.geometry.extent_size(blob.part.size, extent);
        // What is read to check, and to make bad fragments again.
        let bytes = 3 * blob.geometry.write_bytes(plain) + plain as u64;
        let _room = self.memory.work(bytes).await?;
        let checks = (0..blob.layout.locations.len()).map(|index| self.check(blob, extent, index, plain));
        let states: Vec<State> = stream::iter(checks).buffered(8).collect().await;
        let (mut bad, mut good) = (vec![], 0);
        for (index, state) in states.iter().enumerate() {
            report.fragments += 1;
            match state {
                State::Good(bytes) => {
                    report.bytes += bytes;
                    good += 1;
                }
                State::Missing => {
                    report.missing += 1;
                    bad.push(index);
                }
                State::Rotten => {
                    report.rotten += 1;
                    bad.push(index);
                }
            }
        }
        let displaced = |index: usize| blob.layout.locations[index] != after.locations[index];
        bad.extend((0..states.len()).filter(|&index| displaced(index) && matches!(states[index], State::Good(_))));
        if bad.is_empty() {
            return Ok(true);
        }
        if !repair {
            // A bad fragment may still hold good shards.
            if good < blob.geometry.code.data() {
                self.fetch(blob, extent, 0..blob.geometry.pieces(plain)).await?;
            }
            return Ok(false);
        }
        let bytes = self.fetch(blob, extent, 0..blob.geometry.pieces(plain)).await?;
        let coding = blob.clone();
        let fragments = tokio::task::spawn_blocking(move || coding.geometry.write(&coding.keys, extent, &bytes))
            .await
            .map_err(|e| Error::Internal(e.to_string()))??;
        let mut whole = true;
        for (index, bytes) in fragments.into_iter().enumerate().filter(|(index, _)| bad.contains(index)) {
            let name = fragment::name(&blob.part.blob, extent, index);
            match self.locations.put(&after.owner, &after.locations[index], &name, bytes.into()).await {
                Ok(()) => report.repaired += 1,
                Err(error) => {
                    whole = false;
                    add_finding(report, format!("{}: {error}", after.locations[index]));
                }
            }
        }
        Ok(whole)
    }

    /// Reads a whole fragment and checks every tag.
    async fn check(&self, blob: &Arc<Blob>, extent: u32, index: usize, plain: usize) -> State {
        let name = fragment::name(&blob.part.blob, extent, index);
        let (owner, location) = (&blob.layout.owner, &blob.layout.locations[index]);
        let read = async { self.locations.backend(owner, location).await?.get(&name, None).await };
        let read: Result<Bytes, backend::Error> = self.locations.within_limit(owner, location, read).await;
        let Ok(bytes) = read else { return State::Missing };
        let blob = blob.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let (geometry, keys) = (&blob.geometry, &blob.keys);
            let Ok(table) = geometry.table(keys, extent, index as u32, plain, &bytes) else { return State::Rotten };
            let (all, span) = (table.all(), geometry.span(&table, &table.all()));
            let shards =
                geometry.shards(keys, extent, index as u32, &table, &all, bytes.get(span.clone()).unwrap_or_default());
            let good = span.end == bytes.len() && shards.iter().all(Option::is_some);
            if good { State::Good(bytes.len() as u64) } else { State::Rotten }
        });
        checked.await.unwrap_or(State::Rotten)
    }

    /// Removes the fragments of a location that are older than this and belong to nothing; returns how many.
    async fn remove_orphans(&self, owner: &str, location: &str, live: &BTreeSet<Bytes>, before: Timestamp) -> u64 {
        let Ok(backend) = self.locations.backend(owner, location).await else { return 0 };
        let mut removed = 0;
        for short in 0..=255u8 {
            let Ok(found) = backend.list(&format!("{short:02x}")).await else { return removed };
            for found in found {
                let orphan = fragment::named(&found.name).is_some_and(|(blob, _, _)| !live.contains(blob.as_slice()));
                if found.modified < before && orphan && backend.delete(&found.name).await.is_ok() {
                    removed += 1;
                }
            }
        }
        removed
    }
}

fn add_finding(report: &mut ScrubEnded, finding: String) {
    if report.findings.len() < FINDINGS_MAX {
        report.findings.push(finding.chars().take(500).collect());
    }
}
