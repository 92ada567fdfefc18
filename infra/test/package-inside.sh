# What infra/test/package.sh does on the Debian that it has booted; it puts the README's commands in front, as variables.
set -euo pipefail
cd /root
fail() {
  echo "package: $*" >&2
  journalctl --no-pager --unit continuum --lines 20 >&2 || true
  exit 1
}
useradd --create-home person
as_person() { setpriv --reuid person --regid person --clear-groups --no-new-privs env HOME=/home/person bash -c "cd /home/person && $1"; }
files() { find / -xdev -not -path '/proc/*' -not -path '/root/*' -not -path '/tmp/*' -not -path '/var/tmp/*' -not -path '/var/cache/*' -not -path '/var/log/*' -not -path '/var/lib/dpkg/*' -not -path '/var/lib/systemd/*' -not -path '/var/lib/apt/*' | sort; }
left() { comm -13 before <(files) | grep -vE '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$' || true; }

for program in cc gcc clang rustc cargo go python3 nats-server; do
  if command -v "$program" >/dev/null; then fail "$program is on this machine: it shows nothing"; fi
done
files >before

echo "-- two commands: $install; $demo"
begun="$(date +%s%N)"
$install >log 2>&1 || { cat log >&2; fail "it cannot be installed"; }
grep -q 'continuum demo' log || fail "the installation does not say what to do next"
installed="$(date +%s%N)"
as_person "$demo" >story 2>&1 || { tail -n 40 story >&2; fail "the story does not hold"; }
ended="$(date +%s%N)"
tail -n 1 story
took=$(((ended - begun) / 1000000))
echo "installed in $(((installed - begun) / 1000000)) ms; story told after $took ms"
[ "$took" -le 120000 ] || fail "from the package to the story took more than two minutes"

echo "-- the service: $enable"
systemd-analyze verify --man=no continuum.service 2>&1 | tee verify
[ ! -s verify ] || fail "systemd-analyze finds faults in the unit"
systemd-analyze security --no-pager --threshold=40 continuum.service >security || { cat security >&2; fail "the unit is exposed"; }
tail -n 1 security
begun="$(date +%s%N)"
$enable || fail "the service does not start"
echo "up in $((($(date +%s%N) - begun) / 1000000)) ms"
mesh="continuum --data-dir /var/lib/continuum"
$mesh doctor || fail "doctor finds faults"
examples=/usr/share/continuum/examples
$mesh workload push $examples/spinner.workload.yaml
$mesh intent submit $examples/spinner.intent.yaml --id hello --wait fulfilled || fail "an intent is not fulfilled"
spinner="$(pgrep --oldest spinner)" || fail "no workload runs"
[ "$(stat -c %U "/proc/$spinner")" = continuum ] || fail "the workload runs as another user"
grep -q '^NoNewPrivs:.*1$' "/proc/$spinner/status" || fail "the workload may gain privileges"
as_person "$mesh status" >log 2>&1 && fail "another user reads the service's data"
if as_person "continuum --data-dir /tmp/second up --nats-port 4222" >log 2>&1; then fail "a second mesh listens on the same port"; fi
grep -q 'listens there' log || { cat log >&2; fail "the error does not say that the port is taken"; }

echo "-- installed again while it runs"
before_pid="$(systemctl show --property MainPID --value continuum)"
apt-get -qq -y install --reinstall ./continuum_*.deb >log 2>&1 || { cat log >&2; fail "it cannot be installed again"; }
[ "$(systemctl show --property MainPID --value continuum)" != "$before_pid" ] || fail "the old program runs on"
systemctl is-active --quiet continuum || fail "the service did not come back"
$mesh intent get hello | grep -q FULFILLED || fail "the intent is lost"

echo "-- $remove"
$remove >log 2>&1 || { cat log >&2; fail "it cannot be removed"; }
grep -q 'data stays in /var/lib/continuum' log || { cat log >&2; fail "the removal does not say where the data is"; }
if pgrep --uid continuum; then fail "these processes run on"; fi
left | grep -vE '^/var/lib/continuum(/|$)' >other || true
[ ! -s other ] || { cat other >&2; fail "these files are left besides the data"; }
echo "left: $(left | wc -l) files and folders, all of them in /var/lib/continuum"
$install >log 2>&1 && $enable && $mesh intent history hello >/dev/null || fail "the data cannot be used again"
apt-get -qq -y purge continuum >log 2>&1 || { cat log >&2; fail "it cannot be purged"; }
left >other
[ ! -s other ] || { cat other >&2; fail "these files are left after a purge"; }
if getent passwd continuum; then fail "the service's user is left after a purge"; fi
echo "purged: nothing is left"

echo "-- the tarball"
tar -xzf "$tarball" -C /usr/local --strip-components=1
as_person 'continuum up >up.log 2>&1 & for _ in $(seq 300); do grep -q "^continuum is up" up.log && break; sleep 0.1; done
  continuum workload push /usr/local/share/continuum/examples/spinner.workload.yaml && continuum doctor && continuum down; wait' >log 2>&1 ||
  { cat log >&2; fail "the tarball's program does not work"; }
systemd-sysusers && systemctl daemon-reload && systemctl enable --quiet --now continuum || fail "the tarball's unit does not start"
systemctl disable --quiet --now continuum
echo "all of it holds"
