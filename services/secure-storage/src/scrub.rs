//! Scrub: every fragment of every object is read and checked; what is lost or rotten is made again from the others.
//!
//! A fragment whose location is not registered any more is moved to one of the bucket's policy. Data keys under older
//! master keys are wrapped anew if asked. At last, fragments that belong to nothing are removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use mesh_proto::{
    Timestamp, derived_id,
    object::{Layout, ObjectMoved, ObjectStored, ScrubClaimed, ScrubEnded},
};

use crate::{
    fragment,
    gateway::{Blob, Error, Gateway},
    keys, place,
};

/// Findings in a report at most.
const FINDINGS_MAX: usize = 20;

/// How one fragment is.
enum State {
    Good(Bytes),
    Missing,
    Rotten,
}

impl Gateway {
    /// Runs the scrubs that are wanted, one after the other, until the process stops.
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
                        Err(error) => tracing::warn!(scrub, error = error.to_string(), "scrub"),
                    },
                    () = stopping.cancelled() => return Ok(()),
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
                // A scrub that another gateway left.
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
                () = stopping.cancelled() => return Ok(()),
            }
        }
    }

    /// Claims from before this time are over.
    fn claimed_before(&self) -> Timestamp {
        let claim_ms = i64::try_from(self.config.scrub_claim_ms).unwrap_or(i64::MAX);
        Timestamp::from_millis(self.mesh.now().as_millis().saturating_sub(claim_ms))
    }

    async fn claim(&self, owner: &str, scrub: &str) -> Result<bool, Error> {
        let log = self.mesh.bus().log("OBJECT");
        let filter = format!("object.*.v1.{owner}.{scrub}");
        let last = log.last(&filter).await.map_err(|e| Error::Internal(e.to_string()))?;
        if last.as_ref().is_some_and(|stored| stored.message.ends_with("ScrubEnded")) {
            return Ok(false);
        }
        let process = self.mesh.process().to_owned();
        // The view may not have heard of another's claim yet; the entity's last fact is what counts.
        if let Some(claimed) = last.as_ref().and_then(|stored| stored.event::<ScrubClaimed>().ok().flatten())
            && claimed.process != process
            && last.as_ref().is_some_and(|stored| stored.time >= self.claimed_before())
        {
            return Ok(false);
        }
        let sequence = last.map_or(0, |stored| stored.sequence);
        let id = derived_id(&["scrub-claimed", scrub, &process, &sequence.to_string()]);
        let fact = ScrubClaimed { owner: owner.into(), scrub: scrub.into(), process };
        self.say(&fact, sequence, id).await
    }

    /// Claims a scrub and runs it; `false` if another gateway was first.
    async fn scrub_claimed(&self, owner: &str, scrub: &str) -> Result<bool, Error> {
        if !self.claim(owner, scrub).await? {
            return Ok(false);
        }
        let key = (owner.to_owned(), scrub.to_owned());
        let wanted = self.view.read(|view| view.known.scrubs.get(&key).cloned()).unwrap_or_default();
        tracing::info!(scrub, repair = wanted.repair, "scrub begins");
        let mut report = self.scrub(owner, scrub, wanted.repair, wanted.rewrap).await?;
        (report.owner, report.scrub) = key;
        let log = self.mesh.bus().log("OBJECT");
        loop {
            let filter = format!("object.*.v1.{owner}.{scrub}");
            let last = log.last(&filter).await.map_err(|e| Error::Internal(e.to_string()))?;
            if last.as_ref().is_some_and(|stored| stored.message.ends_with("ScrubEnded")) {
                break;
            }
            let sequence = last.map_or(0, |stored| stored.sequence);
            if self.say(&report, sequence, derived_id(&["scrub-ended", scrub, &sequence.to_string()])).await? {
                break;
            }
        }
        tracing::info!(scrub, objects = report.objects, repaired = report.repaired, lost = report.lost, "scrub ended");
        // Until the view has it, it would seem to wait still.
        self.catch_up("OBJECT").await?;
        Ok(true)
    }

    /// Scrubs an owner's objects.
    async fn scrub(&self, owner: &str, scrub: &str, repair: bool, rewrap: bool) -> Result<ScrubEnded, Error> {
        let begun = self.mesh.now();
        let mut claimed = begun;
        self.catch_up("OBJECT").await?;
        let objects: Vec<(String, String)> = self.view.read(|view| {
            let listings = view.listings().flat_map(|(bucket, _, listing)| {
                listing.values().map(move |entry| (bucket.to_owned(), entry.object.clone()))
            });
            listings.collect()
        });
        let mut report = ScrubEnded::default();
        let mut live: BTreeSet<Bytes> = BTreeSet::new();
        let mut locations: BTreeSet<String> = BTreeSet::new();
        for (bucket, object) in objects {
            // It may be gone by now.
            let (Some(now), sequence) = self.last(&bucket, &object).await? else { continue };
            live.extend(now.parts.iter().map(|part| part.blob.clone()));
            if now.owner != owner {
                continue;
            }
            locations.extend(now.layout.iter().flat_map(|layout| layout.locations.clone()));
            report.objects += 1;
            let name = format!("{}/{}", now.bucket, now.key);
            if let Err(error) = self.scrub_object(now, sequence, repair, rewrap, &mut report).await {
                note(&mut report, format!("{name}: {error}"));
            }
            if self.mesh.now().millis_since(claimed) > (self.config.scrub_claim_ms / 3) as i64 {
                claimed = self.mesh.now();
                self.claim(owner, scrub).await?;
            }
        }
        if repair {
            let uploads: Vec<(String, String)> = self.view.read(|view| view.uploads.keys().cloned().collect());
            for (bucket, upload) in uploads {
                let parts = self.parts_of(&bucket, &upload).await?;
                live.extend(parts.into_values().map(|stored| stored.part.blob));
            }
            locations.extend(self.view.read(|view| view.known.locations_of(owner).into_keys().collect::<Vec<_>>()));
            for location in &locations {
                report.orphans += self.remove_orphans(owner, location, &live).await;
            }
        }
        report.took_ms = self.mesh.now().millis_since(begun).max(0) as u64;
        Ok(report)
    }

    async fn scrub_object(
        &self,
        mut object: ObjectStored,
        sequence: u64,
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
                        note(report, format!("{}/{}: {error}", object.bucket, object.key));
                    }
                }
            }
        }
        if lost {
            report.lost += 1;
        } else if lacking {
            report.degraded += 1;
            note(report, format!("{}/{}: lacks fragments", object.bucket, object.key));
        }
        // All extents are in the new locations before the fact says so.
        let relocated = !moved.is_empty() && !lost && !lacking;
        let mut layout = if relocated { (*after).clone() } else { (*before).clone() };
        let rewrapped = rewrap && layout.master_key != self.keys.masters.active();
        if rewrapped {
            let nonce = keys::random().map_err(|e| Error::Internal(e.to_string()))?;
            layout.wrapped_key = self.keys.masters.wrap(&data_key, &layout.key_id, nonce)?.into();
            layout.master_key = self.keys.masters.active().into();
        }
        if relocated || rewrapped {
            let (bucket, token) = (object.bucket.clone(), object.object.clone());
            object.layout = Some(layout);
            let reason = if relocated { "repaired" } else { "rewrapped" }.to_owned();
            let id = derived_id(&["object-moved", &token, &sequence.to_string()]);
            let fact = ObjectMoved { bucket, object: token, now: Some(object), reason };
            // If the object was replaced meanwhile, the new one has new keys and places.
            if self.say(&fact, sequence, id).await? && rewrapped {
                report.rewrapped += 1;
            }
        }
        Ok(())
    }

    /// New locations for fragments whose location is not registered any more: of the bucket's policy, not used by the
    /// object yet.
    fn moved(&self, object: &ObjectStored, layout: &Layout) -> BTreeMap<usize, String> {
        let known = self.view.read(|view| view.known.locations_of(&layout.owner));
        let bucket = self.view.read(|view| view.known.buckets.get(&object.bucket).cloned());
        let wanted = bucket.and_then(|bucket| self.recipe(&bucket).ok()).map(|recipe| recipe.locations);
        let mut free = wanted.unwrap_or_default().into_iter().filter(|l| !layout.locations.contains(l));
        let gone = layout.locations.iter().enumerate().filter(|(_, location)| !known.contains_key(*location));
        gone.map_while(|(index, _)| Some((index, free.next()?))).collect()
    }

    /// Checks an extent's fragments and writes bad ones anew; gives whether all are good at its end.
    async fn scrub_extent(
        &self,
        blob: &Arc<Blob>,
        after: &Arc<Layout>,
        extent: u32,
        repair: bool,
        report: &mut ScrubEnded,
    ) -> Result<bool, Error> {
        let plain = blob.geometry.extent_size(blob.part.size, extent);
        let checks = (0..blob.layout.locations.len()).map(|index| self.check(blob, extent, index, plain));
        let states: Vec<State> = stream::iter(checks).buffered(8).collect().await;
        let (mut bad, mut good) = (vec![], 0);
        for (index, state) in states.iter().enumerate() {
            report.fragments += 1;
            match state {
                State::Good(bytes) => {
                    report.bytes += bytes.len() as u64;
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
            // Whole fragments that are bad may still have good shards.
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
            match self.put_fragment(&after.owner, &after.locations[index], &name, bytes.into()).await {
                Ok(()) => report.repaired += 1,
                Err(error) => {
                    whole = false;
                    note(report, format!("{}: {error}", after.locations[index]));
                }
            }
        }
        Ok(whole)
    }

    /// Reads a whole fragment and checks every tag.
    async fn check(&self, blob: &Arc<Blob>, extent: u32, index: usize, plain: usize) -> State {
        let limit = Duration::from_millis(self.config.location_limit_ms.into());
        let name = fragment::name(&blob.part.blob, extent, index);
        let read =
            async { self.place(&blob.layout.owner, &blob.layout.locations[index]).await?.get(&name, None).await };
        let read: Result<Bytes, place::Error> =
            tokio::time::timeout(limit, read).await.unwrap_or_else(|_| Err(place::Error::Away("silent".into())));
        let Ok(bytes) = read else { return State::Missing };
        let blob = blob.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let (geometry, keys) = (&blob.geometry, &blob.keys);
            let Ok(table) = geometry.table(keys, extent, index as u32, plain, &bytes) else { return State::Rotten };
            let (all, span) = (table.all(), geometry.span(&table, &table.all()));
            let shards =
                geometry.shards(keys, extent, index as u32, &table, &all, bytes.get(span.clone()).unwrap_or_default());
            let good = span.end == bytes.len() && shards.iter().all(Option::is_some);
            if good { State::Good(bytes) } else { State::Rotten }
        });
        checked.await.unwrap_or(State::Rotten)
    }

    /// Removes a location's fragments that are of no object and old; gives how many.
    async fn remove_orphans(&self, owner: &str, location: &str, live: &BTreeSet<Bytes>) -> u64 {
        let Ok(place) = self.place(owner, location).await else { return 0 };
        let orphan_ms = i64::try_from(self.config.orphan_ms).unwrap_or(i64::MAX);
        let mut removed = 0;
        for short in 0..=255u8 {
            let Ok(found) = place.list(&format!("{short:02x}")).await else { return removed };
            for found in found {
                let old = self.mesh.now().millis_since(found.modified) > orphan_ms;
                let orphan = fragment::named(&found.name).is_some_and(|(blob, _, _)| !live.contains(blob.as_slice()));
                if old && orphan && place.delete(&found.name).await.is_ok() {
                    removed += 1;
                }
            }
        }
        removed
    }
}

fn note(report: &mut ScrubEnded, finding: String) {
    if report.findings.len() < FINDINGS_MAX {
        report.findings.push(finding.chars().take(500).collect());
    }
}
