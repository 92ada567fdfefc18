#!/bin/sh
# Makes mesh-438f242.tar.gz: the data folder of a small mesh that the release of commit 438f242 ran, as it was after
# `continuum down`. It was made once; the test upgrade.rs starts the present mesh on it. Its keys protect nothing else.
# It takes half a minute, and needs curl and a nats-server that Continuum finds (`make setup`, or CONTINUUM_NATS_SERVER).
#   integration-tests/data/make-mesh-438f242.sh PATH/TO/continuum-of-438f242
set -eu
old=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'kill "$mesh" 2>/dev/null || true; wait "$mesh" 2>/dev/null || true; rm -rf "$work"' EXIT
mesh=
cd "$work"
export XDG_CONFIG_HOME="$work/config"
# What runs on a simulated cluster goes on after the upgrade, but is not placed there anew: a document of this release
# names no driver, which has meant processes since.
cat > clusters.json <<'END'
[{"name": "north", "driver": "process", "cpu_milli": 4000, "memory_mb": 4000, "labels": {"place": "north"}},
 {"name": "south", "driver": "simulated", "cpu_milli": 4000, "memory_mb": 4000, "labels": {"place": "south"}}]
END
run() { "$old" --data-dir mesh "$@"; }
"$old" --data-dir mesh up --clusters clusters.json > up.log 2>&1 &
mesh=$!
for _ in $(seq 120); do
    if grep -q 'continuum is up' up.log || ! kill -0 "$mesh" 2>/dev/null; then break; fi
    sleep 0.5
done
grep -q 'continuum is up' up.log || { cat up.log; exit 1; }

document() { # name place
    cat <<END
{"name": "$1", "version": "1.0.0", "kind": "process", "clusterSelector": {"place": "$2"},
 "process": {"command": "sleep", "arguments": ["1000000"]}, "resources": {"cpuMilli": 10, "memoryBytes": "10000000"}}
END
}
intent() { # workload targetValueRange
    cat <<END
{"userLabel": "DeliverComputingWorkload", "observationPeriod": 1, "intentExpectations": [{
  "expectationId": "run", "expectationVerb": "DELIVER",
  "expectationObject": {"objectType": "NEMO_WORKLOAD", "objectInstance": "$1@1.0.0"},
  "expectationTargets": [{"targetName": "ramUsage", "targetCondition": "IS_LESS_THAN", "targetValueRange": "$2"}]}]}
END
}
for pair in clock:north meter:south; do
    document "${pair%%:*}" "${pair##*:}" > document.json
    run workload push document.json
done
intent clock 500 > clock.json
intent meter 500 > meter.json
intent unknown 500 > unknown.json
intent meter many > invalid.json
# One in each state: fulfilled (two, of which one has a second version), suspended, ended, waiting, rejected.
for pair in kept:clock changed:meter suspended:clock ended:meter; do
    run intent submit "${pair##*:}.json" --id "${pair%%:*}" --wait fulfilled
done
# A definition may change once the intent has ended.
intent meter 400 > meter-again.json
run intent terminate changed
run intent update meter-again.json --id changed --wait fulfilled
run intent suspend suspended
run intent terminate ended
run intent submit unknown.json --id waiting
if run intent submit invalid.json --id rejected; then exit 1; fi

# The ledger.
run account region north --high-demand 1
run account top-up clock 2.5

# An object in three locations, of which one may be lost.
for name in a b c; do
    run storage location register "$name" --url "dir:$name"
done
cat > policy.json <<'END'
{"name": "default", "edgeDevices": ["a", "b", "c"], "redundancy": {"redundantPackets": 1}}
END
run storage policy define policy.json
run storage object bucket archive
seq 1 5000 > numbers.txt
run storage object put numbers.txt archive numbers.txt

# An account beside the first one, which keeps its password in admin.password.
url=$(cat mesh/state/gateway/url)
run login
token=$(run token)
curl -fsS -X PUT "$url/api/v1/auth/account/" -H "Authorization: Bearer $token" -H 'Content-Type: application/json' \
    -d '{"username": "ada", "password": "correct horse", "roles": ["provider"]}'
echo
run logout
sleep 6
run intent list
run -o json intent list > intents.json
run down
wait "$mesh" || true
mesh=
# What belongs to the run, and the server's logs.
rm -rf mesh/run mesh/lock mesh/login.json mesh/endpoints.json
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$work" -cf - mesh | gzip -9n > "$here/mesh-438f242.tar.gz"
ls -l "$here/mesh-438f242.tar.gz"
