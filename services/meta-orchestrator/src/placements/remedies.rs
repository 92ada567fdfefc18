//! Remedies that were requested for anomalies. They share the cool-down with those of intents: whichever came last,
//! an instance is not disturbed again before it is over.

use mesh_proto::{
    placement::Why,
    remedy::{Action, RemedyRequested},
};

use super::{Standing, available, draft::Draft, facts::decided};

impl Draft<'_> {
    /// Restarts (a new generation on the same cluster) or migrates (another cluster). More replicas come as a new
    /// definition, from whoever owns that.
    pub(super) fn requested(&mut self, remedy: &RemedyRequested) {
        let Some(known) = self.base.instances.get(&remedy.instance_id) else { return };
        let Some(at) = known.at.as_ref() else { return };
        let current = at.cluster_id == remedy.cluster_id && at.generation == remedy.generation;
        let cool = known.moved.is_none_or(|moved| self.at >= moved.plus_millis(self.limits.move_cooldown_ms));
        let idle = known.to.is_none()
            && at.standing == Standing::Running
            && available(self.snapshot(), &at.cluster_id)
            && known.unplaced.as_ref().is_none_or(|u| u.why == Why::Remedy as i32);
        if !(current && cool && idle && known.wanted.owner == remedy.owner) {
            return;
        }
        let instance = self.remembering(known.clone());
        match remedy.action() {
            Action::Restart => {
                let reason = format!("restarted: {}", remedy.reason);
                let here = at.cluster_id.clone();
                self.push(decided(self.limits, &instance, &here, "", vec![], Why::Remedy, &reason));
            }
            Action::Migrate => {
                let choice = self.choose(&instance, Why::Remedy);
                // Where none is better nothing is planned: nobody would say later that it is not wanted any more.
                if choice.chosen.is_some() {
                    self.place(instance, choice, Why::Remedy, &remedy.reason, false);
                }
            }
            Action::Scale | Action::Unspecified => {}
        }
    }
}
